//! Manifests and what stands below them. A registry takes a manifest when it has all that it names, so they are pushed from
//! the leaves to the root.

use std::collections::HashMap;

use bytes::Bytes;

use super::contents::Contents;
use crate::oci::Digest;

/// A manifest, byte for byte.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
    pub contents: Contents,
}

/// What is to be pushed, in groups: each names only what is in the groups before it, or what is there already.
pub(super) fn by_height(nodes: &HashMap<Digest, Node>) -> Vec<Vec<Digest>> {
    let mut heights = HashMap::new();
    let mut groups: Vec<Vec<Digest>> = Vec::new();
    for digest in nodes.keys() {
        let height = height(nodes, *digest, &mut heights);
        if groups.len() <= height {
            groups.resize(height + 1, Vec::new());
        }
        if let Some(group) = groups.get_mut(height) {
            group.push(*digest);
        }
    }
    groups
}

/// Ends, since nothing can name what names it: it would have to know its own hash. `heights` keeps it from going twice to
/// where several ways lead.
fn height(
    nodes: &HashMap<Digest, Node>,
    digest: Digest,
    heights: &mut HashMap<Digest, usize>,
) -> usize {
    if let Some(height) = heights.get(&digest) {
        return *height;
    }
    let named = nodes
        .get(&digest)
        .map(|node| node.contents.manifests.as_slice());
    let below = named
        .unwrap_or_default()
        .iter()
        .filter(|child| nodes.contains_key(&child.digest))
        .map(|child| 1 + height(nodes, child.digest, heights));
    let height = below.max().unwrap_or(0);
    heights.insert(digest, height);
    height
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, media_type};

    fn node(name: &str, below: &[&str]) -> (Digest, Node) {
        let digest = Digest::of(name.as_bytes());
        let manifests = below.iter().map(|name| Descriptor {
            digest: Digest::of(name.as_bytes()),
            media_type: String::new(),
            size: 0,
        });
        let node = Node {
            digest,
            media_type: media_type::OCI_INDEX.to_owned(),
            bytes: Bytes::new(),
            contents: Contents {
                manifests: manifests.collect(),
                ..Contents::default()
            },
        };
        (digest, node)
    }

    #[test]
    fn children_come_before_all_their_parents() {
        // `leaf` is named from two heights, and `there` is at the destination already.
        let nodes = HashMap::from([
            node("root", &["inner", "leaf", "other"]),
            node("inner", &["leaf", "there"]),
            node("leaf", &[]),
            node("other", &["there"]),
        ]);
        let mut groups = by_height(&nodes);
        for group in &mut groups {
            group.sort();
        }
        let named = |names: &[&str]| {
            let mut digests: Vec<_> = names.iter().map(|it| Digest::of(it.as_bytes())).collect();
            digests.sort();
            digests
        };
        assert_eq!(
            groups,
            [
                named(&["leaf", "other"]),
                named(&["inner"]),
                named(&["root"]),
            ]
        );
    }
}
