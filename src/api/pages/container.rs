//! `/view/containers/{token}`: what a name stands for, for whoever has it.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::json;

use super::{Html, page};
use crate::{
    api::{
        Api, Response,
        error_response::{self, Shape},
        jobs::kind_of,
        record::{digests_of, platform_of},
    },
    augment::{Layer, Overlay, Place},
    blocking::Errand,
    mirror::jobs::JobId,
    requests::{Durable, DurableKind, Record, Token},
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
        let name = self.target_image(&record.token, &record.image);
        shown(&record, state, &name)
    }
}

/// `name` is what is pulled.
fn shown(record: &Record, state: State, name: &str) -> Response {
    let image = record.image.to_string();
    page(200, &image, |html| {
        html.element("h1", &image);
        html.raw("<section>\n");
        let durable = record.durable.as_ref();
        match (durable, state) {
            (Some(durable), _) => kept(html, durable),
            (None, State::Good) => {
                html.raw("<p><span class=\"state good\">can be pulled</span> <span class=\"faint\">until ");
                time(html, record.expires);
                html.raw(match record.details.workflow_id {
                    Some(_) => ", or until its workflow run ends</span></p>\n",
                    None => "</span></p>\n",
                });
                html.raw("<pre>docker pull ").text(name).raw("</pre>\n");
                html.raw("<p class=\"faint\">The name is a key: whoever has it can pull this image.</p>\n");
            }
            (None, State::Revoked) => {
                html.raw("<p><span class=\"state over\">revoked</span> <span class=\"faint\">");
                time(html, record.revoked.unwrap_or(record.expires));
                html.raw("</span></p>\n<p>Nothing can be pulled by this name any more.</p>\n");
            }
            (None, State::Over) => {
                html.raw("<p><span class=\"state over\">expired</span></p>\n");
                html.raw(
                    "<p>Nothing can be pulled by this name any more; ask for a new one.</p>\n",
                );
            }
        }
        html.raw("</section>\n<section>\n<h2>Request</h2>\n<dl>\n");
        html.fact("Asked for", &record.details.container_image);
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
        html.fact("Platform", platform_of(record));
        let (source, served) = digests_of(record);
        html.code_fact("Digest", source.as_deref().unwrap_or_default());
        if served != source {
            html.code_fact("Digest with changes", served.as_deref().unwrap_or_default());
        }
        html.raw("</dl>\n</section>\n");
        if let Some(overlay) = &record.overlay {
            changes(html, overlay);
        }
    })
}

/// An image that stays, whatever becomes of the request.
fn kept(html: &mut Html, durable: &Durable) {
    html.raw("<p><span class=\"state good\">")
        .raw(match durable.kind {
            DurableKind::Mirror => "mirror",
            DurableKind::Freeze => "freeze",
        });
    html.raw("</span> <span class=\"faint\">in a repository of its own</span></p>\n");
    html.raw("<pre>docker pull ")
        .text(&durable.target)
        .raw("</pre>\n");
    let job = durable
        .job
        .as_deref()
        .and_then(|job| job.parse::<JobId>().ok());
    if let Some(job) = job {
        html.raw("<p><a");
        // An id has nothing in it but letters, digits and the dash.
        html.attribute("href", &format!("/view/{}/{job}", kind_of(&job)));
        html.raw(">How it was made</a></p>\n");
    }
}

/// What is put on the image.
fn changes(html: &mut Html, overlay: &Overlay) {
    html.raw("<section>\n<h2>Changes to the image</h2>\n<dl>\n");
    for (label, words) in [
        ("Entrypoint", &overlay.entrypoint),
        ("Command", &overlay.cmd),
    ] {
        if !words.is_empty() {
            html.code_fact(label, &json!(words).to_string());
        }
    }
    let folder = overlay.working_dir.as_deref();
    html.code_fact("Working folder", folder.unwrap_or_default());
    // Values may be passwords.
    let variables = overlay.env.iter();
    let variables = variables.map(|it| it.split('=').next().unwrap_or_default().to_owned());
    html.code_facts("Variables", variables);
    html.raw("</dl>\n");
    if !overlay.layers.is_empty() {
        html.table(
            "layer",
            overlay.layers.iter().map(|layer| {
                (
                    origin(layer),
                    layer.digest.to_string(),
                    ByteSize(layer.size).rounded(),
                )
            }),
        );
    }
    html.raw("</section>\n");
}

/// Where a layer is, without what may be a signature, and which image gets it if not each.
fn origin(layer: &Layer) -> String {
    let place = place(&layer.place);
    match &layer.only_for {
        Some(platform) => format!("{place}, for {platform}"),
        None => place,
    }
}

fn place(place: &Place) -> String {
    match place {
        Place::Inline => "sent with the request".to_owned(),
        Place::Repository { registry, .. } => format!("of an image at {registry}"),
        Place::Web { url } => {
            let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("from {host}")
        }
    }
}

pub(super) fn time(html: &mut Html, time: SystemTime) {
    // Whole seconds are enough for people, and the calendar ends somewhere.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let time = time.min(SystemTime::UNIX_EPOCH + LAST);
    let machine = humantime::format_rfc3339_seconds(time).to_string();
    let people = machine.replace('T', " ").replace('Z', " UTC");
    html.raw("<time").attribute("datetime", &machine).raw(">");
    html.text(&people).raw("</time>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{augment::Compression, oci::Digest};

    #[test]
    fn changes_keep_what_is_nobodys_business() {
        let places = [
            Place::Inline,
            Place::Web {
                url: "https://ada:hunter2@files.example.com/layer?signature=hunter2".to_owned(),
            },
            Place::Repository {
                registry: "quay.io".parse().expect("a registry"),
                repository: "acme/tools".parse().expect("a repository"),
            },
        ];
        let mut layers = places.map(|place| Layer {
            digest: Digest::of(b"layer"),
            size: 2048,
            diff_id: Digest::of(b"archive"),
            compression: Compression::Gzip,
            place,
            only_for: None,
        });
        layers[2].only_for = Some("arm64".parse().expect("a platform"));
        let overlay = Overlay {
            entrypoint: vec!["/bin/sh".to_owned(), "<b>".to_owned()],
            cmd: Vec::new(),
            working_dir: Some("/w".to_owned()),
            env: vec!["PASSWORD=hunter2".to_owned(), "EMPTY=".to_owned()],
            layers: layers.to_vec(),
            platforms: "linux/amd64".parse().expect("a platform"),
        };
        let mut html = Html::default();
        changes(&mut html, &overlay);
        let html = html.into_string();
        for shown in [
            "&lt;b&gt;",
            "<code>PASSWORD</code>",
            "sent with the request",
            "from files.example.com",
            "of an image at quay.io, for linux/arm64",
            &Digest::of(b"layer").to_string(),
            "2.0KiB",
        ] {
            assert!(html.contains(shown), "{shown} is not in {html}");
        }
        for hidden in ["hunter2", "signature", "<b>", "Command"] {
            assert!(!html.contains(hidden), "{hidden} is in {html}");
        }
    }
}
