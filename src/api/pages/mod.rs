//! Pages for people: what became of a container request, what an image is, and errors on the way there. Each is whole in
//! itself, without a script and without anything from elsewhere, and says so in its security policy.
//!
//! They show less than the API does: no layer's bytes, no variable's value, nothing of who asked but a name.

mod container;
mod html;
mod inspect;
pub mod inspection;
mod job;

use std::sync::LazyLock;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::Response;
use crate::oci::Digest;
use html::Html;

const STYLE: &str = include_str!("style.css");

/// Its own style by its hash, forms to this server, and nothing else.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let style = STANDARD.encode(Digest::of(STYLE.as_bytes()).as_bytes());
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
});

fn page(status: u16, title: &str, fill: impl FnOnce(&mut Html)) -> Response {
    let mut html = Html::default();
    html.raw("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n")
        .raw("<meta name=\"robots\" content=\"noindex\">\n")
        .element("title", title)
        .raw("\n<style>")
        .raw(STYLE)
        .raw("</style>\n</head>\n<body>\n<main>\n");
    fill(&mut html);
    html.raw("<footer>tidegate ")
        .raw(env!("CARGO_PKG_VERSION"))
        .raw("</footer>\n</main>\n</body>\n</html>\n");
    Response::new(status)
        .field("Content-Security-Policy", POLICY.as_str())
        // The path of a container's page is as good as its name.
        .field("Referrer-Policy", "no-referrer")
        .field("X-Content-Type-Options", "nosniff")
        .field("Cache-Control", "no-store")
        .content("text/html; charset=utf-8", html.into_string())
}

/// An error, where the answer would have been a page.
pub(super) fn problem(status: u16, message: &str) -> Response {
    let title = match status {
        400 => "This cannot be asked",
        401 | 403 => "This is not shown to everybody",
        404 => "There is nothing here",
        405 => "Pages are only read",
        429 => "Too many tries",
        502..=504 => "Not at the moment",
        _ => "This did not work",
    };
    page(status, title, |html| {
        html.element("h1", title).raw("\n<section>\n");
        html.element("p", &sentence(message));
        html.raw("\n</section>\n");
    })
}

/// Messages are phrases.
fn sentence(message: &str) -> String {
    let mut characters = message.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    let mut sentence: String = first.into_iter().chain(characters).collect();
    if !sentence.ends_with(['.', '!', '?']) {
        sentence.push('.');
    }
    sentence
}

impl Html {
    /// A line of a list of facts; nothing where nothing is known.
    fn fact(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.element("dt", name).element("dd", value).raw("\n");
        }
    }

    /// The same for what is to be copied, or has blanks that count.
    fn code_fact(&mut self, name: &str, value: &str) {
        self.code_facts(name, [value.to_owned()]);
    }

    fn code_facts(&mut self, name: &str, values: impl IntoIterator<Item = String>) {
        let mut is_named = false;
        for value in values.into_iter().filter(|value| !value.is_empty()) {
            if !is_named {
                self.element("dt", name);
                is_named = true;
            }
            self.raw("<dd>").element("code", &value).raw("</dd>\n");
        }
    }

    /// A table of layers: for each a digest, words before it, and a size.
    fn table(
        &mut self,
        name: &'static str,
        rows: impl IntoIterator<Item = (String, impl AsRef<str>, String)>,
    ) {
        self.raw("<div class=\"scroll\"><table>\n<thead><tr>")
            .element("th", name)
            .element("th", "digest")
            .raw("<th class=\"size\">size</th></tr></thead>\n<tbody>\n");
        for (words, digest, size) in rows {
            self.raw("<tr>").element("td", &words).raw("<td>");
            self.element("code", digest.as_ref())
                .raw("</td><td class=\"size\">");
            self.text(&size).raw("</td></tr>\n");
        }
        self.raw("</tbody>\n</table></div>\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_sentences() {
        for (message, expected) in [
            ("there is nothing", "There is nothing."),
            ("Stop!", "Stop!"),
            ("", "."),
            ("élan", "élan."),
        ] {
            assert_eq!(sentence(message), expected);
        }
    }

    #[test]
    fn the_policy_has_no_gaps() {
        for gap in ["unsafe", "http", "*", "data:"] {
            assert!(!POLICY.contains(gap), "{gap} in {}", *POLICY);
        }
        assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
    }
}
