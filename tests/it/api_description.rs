//! What `/openapi.json` says is what the server does: schemathesis sends it what the description allows, and what it does not,
//! and compares.

use std::fs;

use serde_json::json;

use crate::support::{
    content::sha256_hex,
    liar::Liar,
    programs::{self, require},
    tidegate::{Directory, Setup},
};

/// Seconds. More find more; this finds what is wrong with a field.
const BUDGET: &str = "120";

#[test]
fn the_description_is_true() {
    require!("schemathesis");
    let liar = Liar::open();
    liar.image("acme/app", "v1", &[]);
    let directory = Directory::new()
        .user("ada", "ada-access-token", &[7])
        .workspace(7, "research");
    let accounts = format!("[accounts]\nadmin = \"{}\"", sha256_hex("letmein"));
    let tidegate = Setup::new()
        .liar(&liar)
        .directory(&directory)
        .section(&accounts)
        .section("[upstream]\nconnect_timeout = \"2s\"\nresponse_timeout = \"2s\"\nretry_count = 0")
        .start();
    let image = liar.reference("acme/app", "v1");
    // The description with what there is here as examples, so that some requests succeed.
    let mut description = tidegate.get("/openapi.json").json();
    let token = tidegate.grant(&image).token;
    for (path, example) in [
        (
            "/components/schemas/ContainerRequest",
            json!({"containerImage": image}),
        ),
        (
            "/components/schemas/Inspection",
            json!({"containerImage": image}),
        ),
        (
            "/components/schemas/Login",
            json!({"userName": "ada", "password": "hunter2", "registry": liar.name()}),
        ),
    ] {
        let schema = description.pointer_mut(path).expect("it is described");
        schema["examples"] = json!([example]);
    }
    let paths = description["paths"].as_object_mut().expect("paths");
    for methods in paths.values_mut() {
        for operation in methods
            .as_object_mut()
            .into_iter()
            .flat_map(|it| it.values_mut())
        {
            if operation["operationId"] == json!("revoke") {
                continue;
            }
            let parameters = operation.get_mut("parameters");
            let parameters = parameters.and_then(|it| it.as_array_mut());
            for parameter in parameters.into_iter().flatten() {
                if parameter["name"] == json!("token") {
                    parameter["example"] = json!(token);
                }
            }
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("openapi.json");
    fs::write(&file, description.to_string()).expect("a writable folder");
    let settings = folder.path().join("schemathesis.toml");
    fs::write(&settings, SETTINGS).expect("a writable folder");
    let seed = "--seed=5";
    let mut command = programs::command("schemathesis");
    command
        .current_dir(folder.path())
        .arg(format!("--config-file={}", settings.display()))
        .args(["run", "--url", &format!("http://{}", tidegate.registry)])
        .args([
            "--max-time",
            BUDGET,
            "--workers",
            "1",
            seed,
            "--auth",
            "admin:letmein",
        ])
        .args([
            "--phases",
            "examples,coverage,fuzzing",
            "--request-timeout",
            "30",
        ])
        .args(["--checks", CHECKS])
        .args(["--warnings", "off", "--no-color"])
        .arg(&file);
    let output = programs::output(&mut command);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // It has tested something.
    let passed = said
        .split_once(" generated, ")
        .and_then(|(_, rest)| rest.split_once(" passed")?.0.parse::<u32>().ok());
    assert!(passed.is_some_and(|count| count > 500), "{said}");
    assert_eq!(tidegate.get("/health").status(), 200);
    assert!(
        !tidegate.log().text().contains("panicked"),
        "{}",
        tidegate.log().text()
    );
}

/// All but `positive_data_acceptance`: whether an image exists cannot be written down in a schema.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,negative_data_rejection,missing_required_header,\
    unsupported_method,allow_header_conformance,ignored_auth";

/// 501 and 502 are answers that the API has, and not failures of the server; 503 is.
const SETTINGS: &str = r#"
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 501, 502]
"#;
