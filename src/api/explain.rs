//! `POST /credentials/explain` on the admin listener: what `tidegate creds explain` says.

use std::{sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use super::{
    Request, Response,
    admin::Admin,
    error_response::{self, Shape, api},
    operator::ensure_no_page,
};
use crate::{
    blocking::Errand,
    credentials::{Claim, Explanation},
    http::RequestHead,
    oci::Reference,
    secret::Secret,
};

pub const CREDENTIALS_GUARD: &str = "credentials";

/// Tokens and an image: some kilobytes.
pub(super) const LARGEST_BODY: u64 = 256 << 10;

/// Whose login for which image.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Question {
    image: String,
    #[serde(default)]
    access_token: Option<Secret<String>>,
    #[serde(default)]
    refresh_token: Option<Secret<String>>,
    #[serde(default)]
    endpoint: Option<String>,
    #[serde(default)]
    workspace: Option<i64>,
    #[serde(default)]
    workflow_id: Option<String>,
}

/// The search, and how the registry took what came of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Explained {
    #[serde(flatten)]
    pub explanation: Explanation,
    /// `None`: it was not asked, since it is not known as whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<Verdict>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The digest of what the image names.
    Granted(String),
    Refused(String),
}

impl Admin {
    pub(super) async fn explain(&self, request: &Request) -> Response {
        if let Err(refusal) = ensure_no_page(&request.head, CREDENTIALS_GUARD) {
            return api(403, &refusal.to_string());
        }
        // What is wrong with it is not quoted: there may be a token in it.
        let Ok(question) = serde_json::from_slice::<Question>(&request.body) else {
            return api(
                400,
                "this should be {\"image\", \"accessToken\", \"refreshToken\", \"endpoint\", \"workspace\", \"workflowId\"} \
                 in JSON, all but the first optional",
            );
        };
        let image: Reference = match question.image.parse() {
            Ok(image) => image,
            Err(error) => return api(400, &format!("image: {error}")),
        };
        let claim = Claim {
            access_token: question.access_token,
            refresh_token: question.refresh_token,
            endpoint: question.endpoint.filter(|it| !it.is_empty()),
            workspace: question.workspace,
            workflow_id: question.workflow_id.filter(|it| !it.is_empty()),
        };
        let (desk, wanted) = (Arc::clone(&self.desk), image.clone());
        let explained = self.pool.run(Errand::Upkeep, move || {
            let deadline = Instant::now() + desk.patience();
            desk.keyring().explain(&claim, &wanted, deadline)
        });
        let (explanation, caller) = match explained.await {
            Ok(explained) => explained,
            Err(error) => return error_response::of_pool(Shape::Api, error),
        };
        let registry = match caller.map(Arc::new) {
            None => None,
            Some(caller) => Some(match self.pull.resolve(&caller, &image).await {
                Ok(digest) => Verdict::Granted(digest.to_string()),
                Err(error) => Verdict::Refused(error.to_string()),
            }),
        };
        Response::new(200).json(&Explained {
            explanation,
            registry,
        })
    }

    pub(super) fn explain_body_limit(head: &RequestHead) -> Option<u64> {
        ensure_no_page(head, CREDENTIALS_GUARD)
            .is_ok()
            .then_some(LARGEST_BODY)
    }
}
