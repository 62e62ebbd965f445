//! `/view/inspect?image=…`: what an image is, as anonymous callers see it.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{
    Html,
    inspection::{Container, Index, Inspection, RunConfig},
    page,
};
use crate::{
    api::{Api, Piece, Request, Response},
    http::{RequestHead, percent_decode, percent_encode_query},
    units::ByteSize,
};

/// Longer than any image's name with its digest.
const LONGEST_NAME: usize = 1024;

/// What the page is asked for.
struct Question {
    image: String,
    platform: Option<String>,
}

impl Question {
    /// `None` before anything is asked.
    fn read(head: &RequestHead) -> Option<Self> {
        let field = |name: &str| {
            let pairs = head.query()?.split('&');
            let mut values = pairs.filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
            let value = percent_decode(values.next()?)?.trim().to_owned();
            (!value.is_empty() && value.len() <= LONGEST_NAME).then_some(value)
        };
        Some(Self {
            image: field("image")?,
            platform: field("platform"),
        })
    }
}

impl Api {
    pub(in crate::api) async fn inspect_page(&self, request: &Request) -> Response {
        let Some(question) = Question::read(&request.head) else {
            return empty();
        };
        // The page is a client of the API, so its rules and its limits are the API's. The platform stands in the query of both.
        let body = json!({"containerImage": question.image}).to_string();
        let mut answer = self
            .inspect(&Request {
                head: request.head.clone(),
                body: body.into(),
                client: request.client,
            })
            .await;
        let bytes = match answer.body.next().await {
            Ok(Some(Piece::Bytes(bytes))) => bytes,
            _ => Bytes::new(),
        };
        match (answer.status, serde_json::from_slice(&bytes)) {
            (200, Ok(inspection)) => shown(&question, &inspection),
            (status, _) => {
                #[derive(Default, Deserialize)]
                struct Said {
                    message: String,
                }
                let said: Said = serde_json::from_slice(&bytes).unwrap_or_default();
                let mut page = refused(&question, status, &said.message);
                let wait = answer.line("Retry-After").unwrap_or_default();
                page.fields.extend_from_slice(wait);
                page
            }
        }
    }
}

/// Before anything is asked.
fn empty() -> Response {
    page(200, "Inspect an image", |html| {
        html.element("h1", "Inspect an image");
        form(html, None);
    })
}

fn refused(question: &Question, status: u16, message: &str) -> Response {
    page(status, "Inspect an image", |html| {
        html.element("h1", &question.image);
        html.raw("<section>\n")
            .element("p", &super::sentence(message))
            .raw("\n</section>\n");
        form(html, Some(question));
    })
}

fn shown(question: &Question, inspection: &Inspection) -> Response {
    let image = match &inspection.container {
        Some(container) => container.image(),
        None => question.image.clone(),
    };
    page(200, &image, |html| {
        html.element("h1", &image);
        if let Some(container) = &inspection.container {
            of_container(html, container);
        }
        if let Some(index) = &inspection.index {
            of_index(html, question, index);
        }
        form(html, Some(question));
    })
}

fn form(html: &mut Html, question: Option<&Question>) {
    let image = question.map_or("", |question| &question.image);
    let platform = question.and_then(|question| question.platform.as_deref());
    html.raw("<section>\n<form action=\"/view/inspect\" method=\"get\">\n")
        .raw("<label class=\"wide\">Image<input name=\"image\" required placeholder=\"quay.io/acme/app:v1\"")
        .attribute("value", image)
        .raw("></label>\n<label>Platform<input name=\"platform\" placeholder=\"linux/amd64\"")
        .attribute("value", platform.unwrap_or_default())
        .raw("></label>\n<button>Inspect</button>\n</form>\n")
        .raw("<p class=\"faint\">Images that need a login: <code>tidegate inspect</code>.</p>\n</section>\n");
}

fn of_container(html: &mut Html, container: &Container) {
    html.raw("<section>\n<h2>Image</h2>\n<dl>\n");
    html.code_fact("Digest", &container.digest);
    if let Some(manifest) = &container.manifest {
        html.fact("Type", manifest.media_type.as_deref().unwrap_or_default());
        let artifact_type = manifest.artifact_type.as_deref();
        html.fact("Artifact", artifact_type.unwrap_or_default());
    }
    if let Some(config) = &container.config {
        html.fact("Platform", &config.platform());
        html.fact("Created", config.created.as_deref().unwrap_or_default());
    }
    html.raw("</dl>\n</section>\n");
    let run = container.config.as_ref();
    if let Some(run) = run.and_then(|config| config.config.as_ref()) {
        of_run(html, run);
    }
    let layers = container.layers();
    if !layers.is_empty() {
        let total = container.size_of_layers();
        html.raw("<section>\n<h2>Layers, ");
        html.text(&ByteSize(total).rounded()).raw("</h2>\n");
        html.table(
            "number",
            (1..).zip(layers).map(|(number, layer): (usize, _)| {
                let size = ByteSize(layer.size).rounded();
                (number.to_string(), layer.digest.as_str(), size)
            }),
        );
        html.raw("</section>\n");
    }
}

/// What runs. Unlike a request's, an image's variables are for all who may have the image.
fn of_run(html: &mut Html, run: &RunConfig) {
    let RunConfig {
        user,
        env,
        cmd,
        working_dir,
        entrypoint,
        labels,
    } = run;
    html.raw("<section>\n<h2>What runs</h2>\n<dl>\n");
    for (name, words) in [("Entrypoint", entrypoint), ("Command", cmd)] {
        if let Some(words) = words.as_ref().filter(|words| !words.is_empty()) {
            html.code_fact(name, &json!(words).to_string());
        }
    }
    html.code_fact("Working folder", working_dir.as_deref().unwrap_or_default());
    html.code_fact("User", user.as_deref().unwrap_or_default());
    html.code_facts("Variables", env.iter().flatten().cloned());
    let labels = labels.iter().flatten();
    html.code_facts(
        "Labels",
        labels.map(|(name, value)| format!("{name}={value}")),
    );
    html.raw("</dl>\n</section>\n");
}

fn of_index(html: &mut Html, question: &Question, index: &Index) {
    html.raw("<section>\n<h2>Index</h2>\n<dl>\n");
    html.code_fact("Digest", index.digest.as_deref().unwrap_or_default());
    html.fact("Type", index.media_type.as_deref().unwrap_or_default());
    html.raw("</dl>\n</section>\n<section>\n<h2>Platforms</h2>\n<dl>\n");
    for image in index.manifests.iter().flatten() {
        html.raw("<dt>");
        let platform = image.platform();
        // Signatures and provenance are listed like images, and are none.
        if platform.starts_with("unknown/") {
            html.text("no platform");
        } else {
            let link = format!(
                "/view/inspect?image={}&platform={}",
                percent_encode_query(&question.image),
                percent_encode_query(&platform)
            );
            html.raw("<a").attribute("href", &link).raw(">");
            html.text(&platform).raw("</a>");
        }
        html.raw("</dt><dd>").element("code", &image.digest);
        html.raw("</dd>\n");
    }
    html.raw("</dl>\n</section>\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::parse_request;

    #[test]
    fn questions_are_read_as_forms_write_them() {
        for (query, expected) in [
            ("", None),
            ("?image=", None),
            ("?platform=amd64", None),
            ("?image=alpine", Some(("alpine", None))),
            (
                "?x=1&image=quay.io%2Facme%2Fapp%3Av1&platform=linux%2Farm64",
                Some(("quay.io/acme/app:v1", Some("linux/arm64"))),
            ),
            ("?image=%20alpine%20&platform=", Some(("alpine", None))),
            ("?images=alpine", None),
            ("?image=%zz", None),
        ] {
            let head = format!("GET /view/inspect{query} HTTP/1.1\r\nHost: a\r\n\r\n");
            let parsed = parse_request(head.as_bytes()).expect("a good head");
            let (head, _) = parsed.expect("a whole head");
            let read = Question::read(&head);
            let read = read.map(|question| (question.image, question.platform));
            let expected =
                expected.map(|(image, platform)| (image.to_owned(), platform.map(str::to_owned)));
            assert_eq!(read, expected, "{query}");
        }
    }
}
