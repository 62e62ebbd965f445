//! How long does it take to know what is asked for? `cargo bench --bench route`

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use tidegate::{api::route::Route, http::Method};

const PATHS: [(&str, &str); 6] = [
    ("version", "/v2/"),
    (
        "manifest_by_tag",
        "/v2/wt/0123456789ab/library/alpine/manifests/latest",
    ),
    (
        "manifest_by_digest",
        "/v2/wt/0123456789ab/library/alpine/manifests/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ),
    (
        "blob",
        "/v2/wt/0123456789ab/library/alpine/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ),
    (
        "direct_blob",
        "/v2/quay.io/biocontainers/bwa/blobs/sha256%3Ae3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ),
    ("status", "/v1alpha2/container/0123456789ab/status"),
];

fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for (name, path) in PATHS {
        assert!(Route::parse(Method::Get, path).is_ok(), "{path}");
        group.bench_with_input(BenchmarkId::from_parameter(name), path, |bencher, path| {
            bencher.iter(|| Route::parse(Method::Get, black_box(path)));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = routes
}
criterion_main!(benches);
