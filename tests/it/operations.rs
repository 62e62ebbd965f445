//! What an operator sees: counters and log lines.

use crate::support::{
    content::Content,
    http,
    liar::Liar,
    tidegate::{Setup, Tidegate},
};

fn counter(tidegate: &Tidegate, name: &str) -> u64 {
    let metrics = http::get(tidegate.admin, "/metrics");
    let text = metrics.text();
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        .unwrap_or_else(|| panic!("no {name} in\n{text}"))
}

#[test]
fn fills_and_hits_are_counted() {
    let liar = Liar::open();
    let content = Content::Generated {
        seed: 1,
        size: 100_000,
    };
    let image = liar.image("acme/app", "v1", &[content]);
    let tidegate = Setup::new().liar(&liar).start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    for _ in 0..3 {
        let pulled = tidegate.pull(&grant.blob(&image.layers[0]));
        assert_eq!(pulled.digest, image.layers[0]);
        tidegate.wait_until_stored(&image.layers[0]);
    }
    assert_eq!(
        tidegate.get("/v2/wt/abcdefghijkl/a/b/tags/list").status(),
        404
    );
    for (name, count) in [
        ("tidegate_container_requests_total", 1),
        ("tidegate_blob_fills_total", 1),
        ("tidegate_blob_hits_total", 2),
        ("tidegate_fetched_bytes_total", 100_000),
        ("tidegate_unknown_tokens_total", 1),
        ("tidegate_blob_mismatches_total", 0),
        ("tidegate_panics_total", 0),
    ] {
        assert_eq!(counter(&tidegate, name), count, "{name}");
    }
    assert!(counter(&tidegate, "tidegate_sent_bytes_total") >= 300_000);
    let metrics = http::get(tidegate.admin, "/metrics");
    let content_type = metrics.header("content-type").unwrap_or_default();
    assert!(
        content_type.starts_with("text/plain; version=0.0.4"),
        "{content_type}"
    );
}

/// The lines that say `acme/app`, one for each request that named it, once the last of them is written.
#[test]
fn each_request_is_one_line_unless_the_operator_wants_none() {
    let liar = Liar::open();
    let image = liar.image("acme/app", "v1", &[Content::of("layer")]);
    for (setting, expected) in [("access = \"on\"", 3), ("access = \"off\"", 0)] {
        let mut tidegate = Setup::new()
            .liar(&liar)
            .section(&format!("[log]\n{setting}"))
            .start();
        let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
        tidegate.get(&grant.manifest("v1"));
        tidegate.get(&grant.blob(&image.layers[0]));
        tidegate.head(&grant.blob(&image.layers[0]));
        tidegate.signal("TERM");
        tidegate.wait();
        tidegate.log().wait_for_end();
        let is_pull =
            |line: &str| line.contains("acme/app/manifests/") || line.contains("acme/app/blobs/");
        let count = tidegate.log().count(is_pull);
        assert_eq!(count, expected, "{setting}:\n{}", tidegate.log().text());
    }
}

/// An operator sees which blobs the cache had.
#[test]
fn the_log_says_where_a_blob_came_from() {
    let liar = Liar::open();
    let image = liar.image("acme/app", "v1", &[Content::of("layer")]);
    let mut tidegate = Setup::new().liar(&liar).start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    let blob = grant.blob(&image.layers[0]);
    assert_eq!(tidegate.get(&blob).text(), "layer");
    tidegate.wait_until_stored(&image.layers[0]);
    assert_eq!(tidegate.get(&blob).text(), "layer");
    assert_eq!(tidegate.get(&grant.manifest("v2")).status(), 404);
    let answered =
        |class: &str| tidegate.metric(&format!("tidegate_responses_total{{class=\"{class}\"}}"));
    // The request, two blobs, and what this asks itself.
    assert!(answered("2xx") >= 3);
    assert_eq!((answered("4xx"), answered("5xx")), (1, 0));
    tidegate.signal("TERM");
    tidegate.wait();
    tidegate.log().wait_for_end();
    for (origin, count) in [("from=\"fill\"", 1), ("from=\"cache\"", 1), ("from=", 2)] {
        let found = tidegate.log().count(|line| line.contains(origin));
        assert_eq!(found, count, "{origin}:\n{}", tidegate.log().text());
    }
}

/// Names and help as promtool wants them.
#[test]
fn metrics_are_as_prometheus_reads_them() {
    let tidegate = Setup::new().start();
    let text = http::get(tidegate.admin, "/metrics").text();
    let mut described = std::collections::BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
        let (family, kind) = line[7..].rsplit_once(' ').expect("a kind");
        let is_new = described.insert(family, kind).is_none();
        assert!(is_new, "{family} is described twice");
        assert!(text.contains(&format!("# HELP {family} ")), "{family}");
        let is_total = family.ends_with("_total");
        assert_eq!(is_total, kind == "counter", "{family} is a {kind}");
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let family = line.split(['{', ' ']).next().expect("a name");
        assert!(described.contains_key(family), "{line} is not described");
    }
    assert!(described.contains_key("tidegate_build_info"), "{text}");
    assert!(
        described.contains_key("process_start_time_seconds"),
        "{text}"
    );
}

#[test]
fn a_log_for_machines_is_json_throughout() {
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let mut tidegate = Setup::new()
        .liar(&liar)
        .section("[log]\nformat = \"json\"")
        .start();
    tidegate.grant(&liar.reference("acme/app", "v1"));
    tidegate.signal("TERM");
    tidegate.wait();
    tidegate.log().wait_for_end();
    let lines = tidegate.log().lines();
    assert!(lines.len() >= 3, "{lines:?}");
    for line in lines {
        let parsed = serde_json::from_str::<serde_json::Value>(&line);
        assert!(parsed.is_ok(), "{line}");
    }
}

#[test]
fn the_admin_listener_serves_no_images() {
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let tidegate = Setup::new().liar(&liar).start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    for path in [
        "/v2/".to_owned(),
        grant.manifest("v1"),
        "/service-info".to_owned(),
    ] {
        assert_eq!(http::get(tidegate.admin, &path).status(), 404, "{path}");
    }
}

#[test]
fn the_admin_listener_says_what_it_has() {
    let tidegate = Setup::new().start();
    let page = http::get(tidegate.admin, "/").text();
    for path in ["/livez", "/readyz", "/metrics", "/jobs"] {
        assert!(page.contains(path), "{path}: {page}");
        assert_eq!(http::get(tidegate.admin, path).status(), 200, "{path}");
    }
}

/// Behind a proxy whose name is not set as `url`, all seems well until somebody pulls.
#[test]
fn a_name_that_leads_clients_to_themselves_is_told_once() {
    let tidegate = Setup::new().start();
    let ask = |host: &str| {
        let headers = [("Host", host), ("Content-Type", "application/json")];
        let path = "/v1alpha2/container";
        http::request(tidegate.registry, "POST", path, &headers, b"{}").status()
    };
    let is_told = |line: &str| line.contains("build-7.example") && line.contains("`url`");
    assert_eq!(ask("localhost:5000"), 400);
    assert_eq!(ask("build-7.example"), 400);
    assert_eq!(ask("build-7.example"), 400);
    tidegate.log().wait_for(is_told).expect("a line about it");
    assert_eq!(tidegate.get("/health").status(), 200);
    tidegate
        .log()
        .wait_for(|line| line.contains("/health"))
        .expect("its line");
    assert_eq!(tidegate.log().count(|line| line.contains("`url`")), 1);
}
