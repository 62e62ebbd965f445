#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::http::{Url, percent_decode, percent_encode_query};

fuzz_target!(|text: &str| {
    assert_eq!(
        percent_decode(&percent_encode_query(text)).as_deref(),
        Some(text)
    );
    let _ = percent_decode(text);
    // A base, and what it is joined with.
    let (base, location) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(base) = base.parse::<Url>() else {
        return;
    };
    holds(&base);
    assert_eq!(base.join(&base.to_string()).as_ref(), Ok(&base));
    assert_eq!(base.join("").as_ref(), Ok(&base));
    if let Ok(joined) = base.join(location) {
        holds(&joined);
        let is_absolute_path = location.starts_with('/') && !location.starts_with("//");
        if is_absolute_path {
            assert_eq!(joined.origin, base.origin);
            assert_eq!(Some(joined.target.as_str()), location.split('#').next());
        }
    }
});

fn holds(url: &Url) {
    assert_eq!(url.to_string().parse().as_ref(), Ok(url));
    // It goes into a request line and into `Host` as it is.
    assert!(url.target.starts_with('/'));
    assert!(
        url.target
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    );
    assert!(!url.origin.host.contains(['@', '/', '?', '#', '\\', ',']));
    assert!(!url.origin.host.is_empty() && url.origin.port != 0);
    let shown = format!("{url:?}");
    assert!(
        shown
            .split_once('?')
            .is_none_or(|(_, query)| query == "***")
    );
}
