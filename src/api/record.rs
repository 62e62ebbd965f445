//! What is told of a container request afterwards, in both shapes that the API has for it.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use serde_json::{Value, json};

use super::{
    Api, Response,
    error_response::{self, Shape},
    overlay::described,
};
use crate::{
    blocking::Errand,
    oci::Digest,
    requests::{DurableKind, Record, Token},
};

impl Api {
    pub(super) async fn describe(&self, token: Token, client: IpAddr) -> Response {
        match self.find_record(token, client).await {
            Ok(record) => Response::new(200).json(&self.description(&record)),
            Err(refusal) => refusal,
        }
    }

    pub(super) async fn record(&self, token: Token, client: IpAddr) -> Response {
        match self.find_record(token, client).await {
            Ok(record) => Response::new(200).json(&self.flat_record(&record)),
            Err(refusal) => refusal,
        }
    }

    async fn find_record(&self, token: Token, client: IpAddr) -> Result<Record, Response> {
        self.may_guess(Shape::Api, client)?;
        let requests = Arc::clone(&self.shared.requests);
        match self
            .shared
            .pool
            .run(Errand::Grants, move || requests.record(&token))
            .await
        {
            Ok(Ok(Some(record))) => Ok(record),
            Ok(Ok(None)) => Err(self.refuse_token(Shape::Api, client)),
            Ok(Err(error)) => Err(error_response::of_store(Shape::Api, &error)),
            Err(error) => Err(error_response::of_pool(Shape::Api, error)),
        }
    }

    fn description(&self, record: &Record) -> Value {
        let (source, served) = digests_of(record);
        without_nulls(json!({
            "token": record.token.as_str(),
            "expiration": instant(record.expires),
            "request": asked(record),
            "source": {"image": record.image.to_string(), "digest": source},
            "wave": {"image": self.result_of(record), "digest": served},
        }))
    }

    /// The newer shape: all in one.
    fn flat_record(&self, record: &Record) -> Value {
        let (source, served) = digests_of(record);
        let is = |kind| record.durable.as_ref().is_some_and(|it| it.kind == kind);
        let mut flat = json!({
            "id": record.token.as_str(),
            "sourceImage": record.image.to_string(),
            "sourceDigest": source,
            "waveImage": self.result_of(record),
            "waveDigest": served,
            "expiration": instant(record.expires),
            "buildId": record.durable.as_ref().and_then(|durable| durable.job.as_deref()),
            "freeze": is(DurableKind::Freeze),
            "mirror": is(DurableKind::Mirror),
        });
        if let (Value::Object(flat), Value::Object(asked)) = (&mut flat, asked(record)) {
            flat.extend(asked);
        }
        without_nulls(flat)
    }

    /// What is pulled in the end.
    fn result_of(&self, record: &Record) -> String {
        match &record.durable {
            Some(durable) => durable.target.clone(),
            None => self.target_image(&record.token, &record.image),
        }
    }
}

/// What was asked for, and by whom.
fn asked(record: &Record) -> Value {
    let details = &record.details;
    let timestamp = details.timestamp.as_ref();
    json!({
        "user": record.user.as_ref().map(|user| json!({"userName": user.name})),
        "workspaceId": record.user.as_ref().and_then(|user| user.workspace),
        "containerImage": details.container_image,
        "containerConfig": record.overlay.as_ref().map(described),
        "platform": platform_of(record),
        "towerEndpoint": details.tower_endpoint,
        "fingerprint": details.fingerprint,
        "timestamp": instant(timestamp.map_or(record.created, |time| time.instant)),
        "zoneId": timestamp.map_or("Z", |time| time.zone.as_str()),
        "ipAddress": details.address.to_string(),
    })
}

/// That nobody asked for is the usual one.
pub(super) fn platform_of(record: &Record) -> &str {
    let asked = record.details.platform.as_deref();
    asked.unwrap_or("linux/amd64")
}

/// What the image was when it was first pulled, or before that, when it was asked for; and what was served then. Without
/// an overlay they are the same.
pub(super) fn digests_of(record: &Record) -> (Option<String>, Option<String>) {
    let source = record.source_digest.or(record.resolved_digest);
    let served = match record.overlay {
        Some(_) => record.served_digest,
        None => source,
    };
    let text = |digest: Option<Digest>| digest.map(|digest| digest.to_string());
    (text(source), text(served))
}

/// What is absent or empty is left out of objects, as clients know it. Not so in what people have written.
pub(super) fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().map(|(name, value)| match name.as_str() {
                "labels" | "annotations" => (name, value),
                _ => (name, without_nulls(value)),
            });
            Value::Object(kept.filter(|(_, value)| !is_empty(value)).collect())
        }
        Value::Array(values) => Value::Array(values.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// ISO-8601 in UTC with a `Z`: what clients parse.
pub(super) fn instant(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}
