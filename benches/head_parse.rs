//! How long does a head take, once all of it is there? `cargo bench --bench head_parse`
//!
//! httparse alone, on the same bytes, is the floor: what lies above it is our copy, the rules of framing,
//! hosts and targets, and the search for the head's end.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidegate::http::{ChunkDecoder, Method, head_end, parse_request, parse_response};

/// As these clients send them when they pull (a blob for containerd, a tag for the others).
const REQUESTS: [(&str, &str); 3] = [
    (
        "containerd",
        "GET /v2/wt/0123456789ab/library/alpine/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 HTTP/1.1\r\n\
         Host: wave.example.org:5000\r\n\
         User-Agent: containerd/v2.1.4\r\n\
         Accept: application/vnd.oci.image.layer.v1.tar+gzip, */*\r\n\
         Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5\r\n\
         Range: bytes=0-\r\n\
         \r\n",
    ),
    (
        "docker",
        "HEAD /v2/wt/0123456789ab/library/alpine/manifests/latest HTTP/1.1\r\n\
         Host: wave.example.org:5000\r\n\
         User-Agent: docker/28.3.0 go/go1.24.4 git-commit/265f709 kernel/6.8.0-60-generic os/linux arch/amd64 UpstreamClient(Docker-Client/28.3.0 \\(linux\\))\r\n\
         Accept: application/vnd.docker.distribution.manifest.v2+json\r\n\
         Accept: application/vnd.docker.distribution.manifest.list.v2+json\r\n\
         Accept: application/vnd.oci.image.index.v1+json\r\n\
         Accept: application/vnd.oci.image.manifest.v1+json\r\n\
         Accept: application/vnd.docker.distribution.manifest.v1+prettyjws\r\n\
         Accept: application/json\r\n\
         Connection: close\r\n\
         \r\n",
    ),
    (
        "podman",
        "GET /v2/wt/0123456789ab/library/alpine/manifests/latest HTTP/1.1\r\n\
         Host: wave.example.org:5000\r\n\
         User-Agent: containers/5.36.0 (github.com/containers/image)\r\n\
         Accept: application/vnd.oci.image.manifest.v1+json\r\n\
         Accept: application/vnd.docker.distribution.manifest.v2+json\r\n\
         Accept: application/vnd.docker.distribution.manifest.v1+prettyjws\r\n\
         Accept: application/vnd.docker.distribution.manifest.v1+json\r\n\
         Accept: application/vnd.docker.distribution.manifest.list.v2+json\r\n\
         Accept: application/vnd.oci.image.index.v1+json\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\n\
         Accept-Encoding: gzip\r\n\
         \r\n",
    ),
];

/// A storage service's answer to a blob.
const RESPONSE: &str = "HTTP/1.1 200 OK\r\n\
     Date: Sun, 22 Mar 2026 10:00:00 GMT\r\n\
     Content-Type: application/octet-stream\r\n\
     Content-Length: 3623807\r\n\
     Connection: keep-alive\r\n\
     Accept-Ranges: bytes\r\n\
     ETag: \"64b2f1f4a1b2c3d4e5f60718293a4b5c\"\r\n\
     Last-Modified: Mon, 16 Feb 2026 21:03:44 GMT\r\n\
     Docker-Content-Digest: sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\r\n\
     Docker-Distribution-Api-Version: registry/2.0\r\n\
     Cache-Control: max-age=31536000\r\n\
     Strict-Transport-Security: max-age=31536000\r\n\
     X-Cache: HIT\r\n\
     Server: cloudflare\r\n\
     \r\n";

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request_head");
    for (client, head) in REQUESTS {
        let bytes = head.as_bytes();
        assert!(matches!(parse_request(bytes), Ok(Some((_, size))) if size == bytes.len()));
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_with_input(BenchmarkId::new("ours", client), bytes, |bencher, bytes| {
            bencher.iter(|| parse_request(black_box(bytes)));
        });
        group.bench_with_input(
            BenchmarkId::new("httparse", client),
            bytes,
            |bencher, bytes| {
                bencher.iter(|| {
                    let mut fields = [httparse::EMPTY_HEADER; 128];
                    let mut request = httparse::Request::new(&mut fields);
                    request.parse(black_box(bytes)).expect("it is well-formed");
                    request.headers.len()
                });
            },
        );
        group.bench_with_input(
            BenchmarkId::new("head_end", client),
            bytes,
            |bencher, bytes| {
                bencher.iter(|| head_end(black_box(bytes), 0));
            },
        );
    }
    group.finish();
}

fn responses(criterion: &mut Criterion) {
    let bytes = RESPONSE.as_bytes();
    assert!(matches!(parse_response(bytes, Method::Get), Ok(Some(_))));
    let mut group = criterion.benchmark_group("response_head");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("ours", |bencher| {
        bencher.iter(|| parse_response(black_box(bytes), Method::Get));
    });
    group.finish();
}

/// Chunks of 16 KiB, as proxies send them: the coding must cost nothing beside the copy.
fn chunks(criterion: &mut Criterion) {
    let chunk = [b"4000\r\n", vec![b'x'; 0x4000].as_slice(), b"\r\n"].concat();
    let body = [chunk.repeat(64).as_slice(), b"0\r\n\r\n"].concat();
    let mut group = criterion.benchmark_group("chunked_body");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("1MiB", |bencher| {
        bencher.iter(|| {
            let mut decoder = ChunkDecoder::new();
            let mut rest = black_box(body.as_slice());
            let mut data_size = 0;
            while !decoder.is_done() {
                let (consumed, data) = decoder.decode(rest).expect("it is well-formed");
                rest = rest.get(consumed..).unwrap_or_default();
                data_size += data.len();
            }
            data_size
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = requests, responses, chunks
}
criterion_main!(benches);
