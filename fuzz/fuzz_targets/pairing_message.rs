#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use serde_json::json;
use tidegate::platform::messages::Incoming;

fuzz_target!(|text: &str| {
    let Ok(Incoming::Answer { to, response }) = Incoming::parse(text) else {
        return;
    };
    let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in &response.fields {
        headers.entry(name).or_default().push(value.expose());
    }
    let printed = json!({
        "@type": "proxy-http-response", "msgId": to.as_str(), "status": response.status,
        "body": response.body.expose(), "headers": headers,
    })
    .to_string();
    let Ok(Incoming::Answer {
        to: same,
        response: again,
    }) = Incoming::parse(&printed)
    else {
        panic!("{printed}");
    };
    assert_eq!((same, again.status), (to, response.status));
    assert_eq!(again.body, response.body);
    // Names that differed in their letters' case only stand together now.
    let mut fields = response.fields.clone();
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert_eq!(again.fields, fields);
});
