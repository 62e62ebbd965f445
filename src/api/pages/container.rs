//! `/view/containers/{token}`: what a name stands for, for whoever has it.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::Value;

use super::{Html, page};
use crate::{
    api::{
        Api, Response,
        error_response::{self, Shape},
    },
    blocking::Errand,
    requests::{Record, Token},
    units::ByteSize,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    Revoked,
    /// By itself, or with its run.
    Over,
}

impl Api {
    pub(in crate::api) async fn container_page(&self, token: Token, client: IpAddr) -> Response {
        if let Err(refusal) = self.may_guess(Shape::Page, client) {
            return refusal;
        }
        let (requests, now) = (Arc::clone(&self.shared.requests), SystemTime::now());
        let found = self.shared.pool.run(Errand::Grants, move || {
            let record = requests.record(&token)?;
            // A run's names may end before their time.
            let is_good = requests.find(&token, now)?.is_some();
            Ok(record.map(|record| (record, is_good)))
        });
        let (record, is_good) = match found.await {
            Ok(Ok(Some(found))) => found,
            Ok(Ok(None)) => return self.refuse_token(Shape::Page, client),
            Ok(Err(error)) => return error_response::of_store(Shape::Page, &error),
            Err(error) => return error_response::of_pool(Shape::Page, error),
        };
        let state = match (record.revoked, is_good) {
            (Some(_), _) => State::Revoked,
            (None, true) => State::Good,
            (None, false) => State::Over,
        };
        shown(&record, state, &self.flat_record(&record))
    }
}

/// `flat` is the record as the API tells it.
fn shown(record: &Record, state: State, flat: &Value) -> Response {
    let image = record.image.to_string();
    page(200, &image, |html| {
        html.element("h1", &image);
        html.raw("<section>\n");
        let name = text(flat, "waveImage");
        match state {
            State::Good => {
                html.raw("<p><span class=\"state good\">can be pulled</span> <span class=\"faint\">until ");
                time(html, record.expires);
                html.raw(match record.details.workflow_id {
                    Some(_) => ", or until its workflow run ends</span></p>\n",
                    None => "</span></p>\n",
                });
                html.raw("<pre>docker pull ").text(name).raw("</pre>\n");
                html.raw("<p class=\"faint\">The name is a key: whoever has it can pull this image.</p>\n");
            }
            State::Revoked => {
                html.raw("<p><span class=\"state over\">revoked</span> <span class=\"faint\">");
                time(html, record.revoked.unwrap_or(record.expires));
                html.raw("</span></p>\n<p>Nothing can be pulled by this name any more.</p>\n");
            }
            State::Over => {
                html.raw("<p><span class=\"state over\">expired</span></p>\n");
                html.raw(
                    "<p>Nothing can be pulled by this name any more; ask for a new one.</p>\n",
                );
            }
        }
        html.raw("</section>\n<section>\n<h2>Request</h2>\n<dl>\n");
        html.fact("Asked for", text(flat, "containerImage"));
        let user = record.user.as_ref();
        html.fact("By", user.map_or("an anonymous caller", |user| &user.name));
        let workspace = user.and_then(|user| user.workspace);
        html.fact(
            "Workspace",
            &workspace.map_or_else(String::new, |id| id.to_string()),
        );
        html.raw("<dt>On</dt><dd>");
        time(html, record.created);
        html.raw("</dd>\n");
        html.fact("Platform", text(flat, "platform"));
        let (source, served) = (text(flat, "sourceDigest"), text(flat, "waveDigest"));
        html.code_fact("Digest", source);
        if served != source {
            html.code_fact("Digest with changes", served);
        }
        html.raw("</dl>\n</section>\n");
        if let Some(config) = flat.get("containerConfig").filter(|it| !it.is_null()) {
            changes(html, config);
        }
    })
}

/// What is put on the image.
fn changes(html: &mut Html, config: &Value) {
    html.raw("<section>\n<h2>Changes to the image</h2>\n<dl>\n");
    for (label, name) in [("Entrypoint", "entrypoint"), ("Command", "cmd")] {
        let words = list(config, name);
        if !words.is_empty() {
            html.code_fact(label, &Value::from(words.to_vec()).to_string());
        }
    }
    html.code_fact("Working folder", text(config, "workingDir"));
    // Values may be passwords.
    let variables = list(config, "env").iter().filter_map(Value::as_str);
    let variables = variables.map(|it| it.split('=').next().unwrap_or_default().to_owned());
    html.code_facts("Variables", variables);
    html.raw("</dl>\n");
    let layers = list(config, "layers");
    if !layers.is_empty() {
        html.table(
            "layer",
            layers.iter().map(|layer| {
                let size = layer.get("gzipSize").and_then(Value::as_u64);
                let size = size.map_or_else(String::new, |size| ByteSize(size).rounded());
                (
                    origin(text(layer, "location")),
                    text(layer, "gzipDigest"),
                    size,
                )
            }),
        );
    }
    html.raw("</section>\n");
}

/// Where a layer is, without what may be a signature or the layer itself.
fn origin(location: &str) -> String {
    let Some((scheme, rest)) = location.split_once("://") else {
        return "sent with the request".to_owned();
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    match scheme {
        "docker" => format!("of an image at {host}"),
        _ => format!("from {host}"),
    }
}

fn time(html: &mut Html, time: SystemTime) {
    // Whole seconds are enough for people, and the calendar ends somewhere.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let time = time.min(SystemTime::UNIX_EPOCH + LAST);
    let machine = humantime::format_rfc3339_seconds(time).to_string();
    let people = machine.replace('T', " ").replace('Z', " UTC");
    html.raw("<time").attribute("datetime", &machine).raw(">");
    html.text(&people).raw("</time>");
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    let list = value.get(name).and_then(Value::as_array);
    list.map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn changes_keep_what_is_nobodys_business() {
        let mut html = Html::default();
        changes(
            &mut html,
            &json!({
                "entrypoint": ["/bin/sh", "<b>"], "env": ["PASSWORD=hunter2", "EMPTY="], "workingDir": "/w",
                "layers": [
                    {"location": "data:aHVudGVyMg==", "gzipDigest": "sha256:aa", "gzipSize": 2048},
                    {"location": "https://ada:hunter2@files.example.com/layer?signature=hunter2", "gzipDigest": "sha256:bb"},
                    {"location": "docker://quay.io/v2/acme/tools/blobs/sha256:cc", "gzipDigest": "sha256:cc", "gzipSize": 7},
                ],
            }),
        );
        let html = html.into_string();
        for shown in [
            "&lt;b&gt;",
            "<code>PASSWORD</code>",
            "sent with the request",
            "from files.example.com",
            "of an image at quay.io",
            "sha256:aa",
            "2.0KiB",
        ] {
            assert!(html.contains(shown), "{shown} is not in {html}");
        }
        for hidden in ["hunter2", "aHVudGVyMg", "signature", "<b>", "Command"] {
            assert!(!html.contains(hidden), "{hidden} is in {html}");
        }
    }
}
