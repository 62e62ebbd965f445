//! HTML with everything escaped that is not a constant of ours: there is no other way to put text into it.

use std::fmt::Write as _;

/// A document that grows. Tags are constants; what stands in them goes through `text` and `attribute`.
#[derive(Default)]
pub(super) struct Html(String);

impl Html {
    /// Our own, never anybody's words: a constant cannot come from outside.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Between tags.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        for character in text.chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // Texts that turn the direction of writing can make one name look like another; the rest has no look.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => {
                    self.0.push('\u{fffd}');
                }
                '\n' | '\t' => self.0.push(character),
                other if other.is_control() => self.0.push('\u{fffd}'),
                other => self.0.push(other),
            }
        }
        self
    }

    /// ` name="value"`, in a tag that is open. Not for URLs, which may do more than name something.
    pub(super) fn attribute(&mut self, name: &'static str, value: &str) -> &mut Self {
        let _ = write!(self.0, " {name}=\"");
        self.text(value);
        self.0.push('"');
        self
    }

    /// `<tag>text</tag>`
    pub(super) fn element(&mut self, tag: &'static str, text: &str) -> &mut Self {
        let _ = write!(self.0, "<{tag}>");
        self.text(text);
        let _ = write!(self.0, "</{tag}>");
        self
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_becomes_markup() {
        let mut html = Html::default();
        let evil = "</p><script>alert('x' & \"y\")</script>";
        html.raw("<p").attribute("title", evil).raw(">");
        html.text(evil)
            .raw("</p>")
            .element("code", "a<b\u{202e}\u{1b}c");
        let escaped =
            "&lt;/p&gt;&lt;script&gt;alert(&#39;x&#39; &amp; &quot;y&quot;)&lt;/script&gt;";
        let expected =
            format!("<p title=\"{escaped}\">{escaped}</p><code>a&lt;b\u{fffd}\u{fffd}c</code>");
        assert_eq!(html.into_string(), expected);
    }
}
