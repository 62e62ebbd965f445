//! A full disk costs the cache, not the pull.

use crate::support::{
    content::Content,
    http::End,
    liar::Liar,
    small_disk::SmallDisk,
    tidegate::{Setup, files_below},
};

const MIB: u64 = 1 << 20;

#[test]
fn a_full_disk_fails_no_pull() {
    let Some(disk) = SmallDisk::mount("6m") else {
        return;
    };
    let liar = Liar::open();
    let layers: Vec<Content> = (0..4)
        .map(|seed| Content::Generated {
            seed,
            size: 4 * MIB,
        })
        .collect();
    let image = liar.image("acme/app", "v1", &layers);
    // It is told that it may use much more than there is.
    let directory = disk.path().join("cache");
    let tidegate = Setup::new()
        .liar(&liar)
        .section("[cache]\nmax_size = \"1GiB\"")
        .cache_folder(directory.clone())
        .start();
    let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
    for round in 0..2 {
        for digest in &image.layers {
            let pulled = tidegate.pull(&grant.blob(digest));
            assert_eq!(
                (&pulled.digest, pulled.end),
                (digest, End::Complete),
                "round {round}"
            );
        }
    }
    let kept = files_below(&directory.join("blobs"));
    assert_eq!(kept.len(), 1, "one fits: {kept:?}");
    assert!(
        tidegate.log().text().contains("streamed uncached"),
        "the operator is told"
    );
    assert!(
        files_below(&directory.join("fills")).is_empty(),
        "nothing half is left behind"
    );
}
