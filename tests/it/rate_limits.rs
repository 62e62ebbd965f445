//! How often users and addresses may ask for names and pull, and whose address counts behind proxies.

use std::net::SocketAddr;

use serde_json::json;

use crate::support::{
    http::{self, Response},
    liar::Liar,
    tidegate::{Directory, Setup},
};

const ACCESS_TOKEN: &str = "ada-access-token";

fn assert_refused(response: &Response) {
    assert_eq!(response.status(), 429, "{}", response.text());
    let wait: u64 = response
        .header("retry-after")
        .and_then(|it| it.parse().ok())
        .unwrap_or(0);
    assert!(wait > 0, "no time to wait");
}

fn submit(address: SocketAddr, image: &str, headers: &[(&str, &str)]) -> Response {
    let body = json!({"containerImage": image}).to_string();
    http::request(
        address,
        "POST",
        "/v1alpha2/container",
        headers,
        body.as_bytes(),
    )
}

#[test]
fn manifests_by_digest_are_counted_and_nothing_else() {
    let liar = Liar::open();
    let image = liar.image("acme/app", "v1", &[]);
    let directory = Directory::new().user("ada", ACCESS_TOKEN, &[]);
    let tidegate = Setup::new()
        .liar(&liar)
        .directory(&directory)
        .section("[limits]\nanonymous_pulls = \"2/1h\"\nuser_pulls = \"3/1h\"")
        .start();
    let reference = liar.reference("acme/app", "v1");
    let anonymous = tidegate.grant(&reference);
    let hers = tidegate.grant_as(ACCESS_TOKEN, &reference);
    for (grant, allowed) in [(&anonymous, 2), (&hers, 3)] {
        let by_digest = grant.manifest(&image.manifest);
        for count in 0..allowed {
            assert_eq!(tidegate.get(&by_digest).status(), 200, "{count}");
            // Free of charge.
            assert_eq!(tidegate.get(&grant.manifest("v1")).status(), 200);
            assert_eq!(tidegate.get(&grant.blob(&image.config)).status(), 200);
        }
        let response = tidegate.get(&by_digest);
        assert_refused(&response);
        assert_eq!(response.error_code(), "TOOMANYREQUESTS");
        assert_refused(&tidegate.head(&by_digest));
        assert_eq!(tidegate.get(&grant.manifest("v1")).status(), 200);
        assert_eq!(tidegate.get(&grant.blob(&image.config)).status(), 200);
    }
    // Another name does not help, and the user's does not count for others.
    let again = tidegate.grant(&reference);
    assert_refused(&tidegate.get(&again.manifest(&image.manifest)));
}

#[test]
fn inspections_and_requests_are_counted_together() {
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let tidegate = Setup::new()
        .liar(&liar)
        .section("[limits]\nanonymous_requests = \"2/1h\"")
        .start();
    let image = liar.reference("acme/app", "v1");
    let request = json!({"containerImage": image});
    assert_eq!(tidegate.submit(&request).0, 200);
    assert_eq!(tidegate.post("/v1alpha1/inspect", &request).0, 200);
    liar.forget_requests();
    assert_eq!(tidegate.submit(&request).0, 429);
    assert_eq!(tidegate.post("/v1alpha1/inspect", &request).0, 429);
    assert!(
        liar.requests().is_empty(),
        "the registry was asked all the same"
    );
    // What is no request costs nothing, and says so as ever.
    assert_eq!(tidegate.submit(&json!({})).0, 400);
}

#[test]
fn clients_behind_a_trusted_proxy_count_each_for_himself() {
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let image = liar.reference("acme/app", "v1");
    let limits = "[limits]\nanonymous_requests = \"1/1h\"";
    let proxies = "[listener]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]";
    let trusting = Setup::new()
        .liar(&liar)
        .section(limits)
        .section(proxies)
        .start();
    for (field, status) in [
        ("192.0.2.1", 200),
        ("192.0.2.1", 429),
        // Whatever the client has written before.
        ("192.0.2.9, 192.0.2.1", 429),
        ("192.0.2.1, 10.1.2.3", 429),
        ("192.0.2.2", 200),
        ("2001:db8:1:2::3", 200),
        ("2001:db8:1:2::4", 429),
    ] {
        let response = submit(trusting.registry, &image, &[("X-Forwarded-For", field)]);
        assert_eq!(response.status(), status, "{field}: {}", response.text());
    }
    // The record has it, too.
    let response = submit(
        trusting.registry,
        &image,
        &[("X-Forwarded-For", "192.0.2.3")],
    );
    let token = response.json()["requestId"].clone();
    let token = token.as_str().unwrap_or_default();
    let record = trusting.get(&format!("/container-token/{token}")).json();
    assert_eq!(record["request"]["ipAddress"], json!("192.0.2.3"));

    let forwarded = format!("{proxies}\nforwarded_by = \"forwarded\"");
    let other = Setup::new()
        .liar(&liar)
        .section(limits)
        .section(&forwarded)
        .start();
    for (name, value, status) in [
        ("Forwarded", "for=192.0.2.1;proto=https", 200),
        ("Forwarded", "for=192.0.2.2, for=192.0.2.1", 429),
        ("Forwarded", "for=\"[2001:db8::1]:1234\"", 200),
        // Not the field that the proxy takes care of: all of these are the proxy's own.
        ("X-Forwarded-For", "192.0.2.5", 200),
        ("X-Forwarded-For", "192.0.2.6", 429),
    ] {
        let response = submit(other.registry, &image, &[(name, value)]);
        assert_eq!(response.status(), status, "{name}: {value}");
    }

    let plain = Setup::new().liar(&liar).section(limits).start();
    for (field, status) in [("192.0.2.1", 200), ("192.0.2.2", 429)] {
        let response = submit(plain.registry, &image, &[("X-Forwarded-For", field)]);
        assert_eq!(response.status(), status, "{field} from anybody");
    }
}
