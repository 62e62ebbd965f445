#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::{
    cache::index::{Entry, FEWEST_SLOTS, Files, Index, LARGEST_SIZE, Name, Pen, Place, Stage},
    oci::{Digest, Registry},
};

/// Some files are there, some are not.
struct SomeFiles;

impl Files for SomeFiles {
    fn size_of(&mut self, _: &Index, name: &Name) -> Option<u64> {
        let [first, ..] = name.digest_bytes();
        (first % 2 == 0).then_some(u64::from(first))
    }

    fn remove(&mut self, _: &Index, _: &Name) {}
}

fn whole_and_consistent(index: &Index) -> u64 {
    let mut count = 0;
    for entry in index.entries() {
        assert!(entry.size <= LARGEST_SIZE);
        assert!((entry.place.slot as usize) < index.slots());
        assert_eq!(index.entry(entry.place).map(|entry| entry.name), Some(entry.name));
        count += 1;
    }
    count
}

fn entry(index: &Index, number: u64) -> Entry {
    Entry {
        place: Place {
            slot: 0,
            generation: 0,
        },
        name: index.name(&Registry::docker_hub(), &Digest::of(&number.to_le_bytes())),
        size: number,
        repository: number,
        last_use: number,
        frequency: 1,
        is_main: false,
    }
}

fn use_it(index: &Index, pen: &mut Pen) {
    let before: Vec<Entry> = index.entries().take(1000).collect();
    for entry in &before {
        // One of the same name, for foreign bytes may say a thing twice.
        if let Some(seen) = index.find(&entry.name) {
            index.touch(&seen, 1_800_000_000);
        }
        if index.begin_removal(pen, entry.place).is_some() {
            index.finish_removal(pen, entry.place);
        }
        assert!(index.entry(entry.place).is_none());
    }
    for number in 0..50 {
        let new = entry(index, number);
        if index.find(&new.name).is_none() && index.insert(pen, &new, Stage::Live).is_ok() {
            let seen = index.find(&new.name).expect("just put there");
            assert_eq!(seen.size, number);
        }
    }
    whole_and_consistent(index);
}

// The input as a file, and as changes to a good one.
fuzz_target!(|input: &[u8]| {
    if let Ok(Some((index, mut pen, _))) = Index::from_bytes(input, &mut SomeFiles) {
        use_it(&index, &mut pen);
    }
    let (good, mut pen) = Index::in_memory(FEWEST_SLOTS);
    for number in 0..20 {
        let _ = good.insert(&mut pen, &entry(&good, number), Stage::Live);
    }
    let mut bytes = good.to_bytes();
    // Six bytes each: where, and what. Some go into the header, most to the slots that are in use.
    for change in input.as_chunks::<6>().0 {
        let [a, b, c, word, value, kind] = *change;
        let used: Vec<Place> = good.entries().map(|entry| entry.place).collect();
        let slot = match kind % 3 {
            0 => used[usize::from(a) % used.len()].slot as usize,
            _ => u32::from_le_bytes([a, b, c, 0]) as usize % good.slots(),
        };
        let at = match kind {
            255 => usize::from(a) % 104,
            _ => 4096 + slot * 64 + usize::from(word) % 64,
        };
        bytes[at] = value;
    }
    if let Ok(Some((index, mut pen, _))) = Index::from_bytes(&bytes, &mut SomeFiles) {
        let count = whole_and_consistent(&index);
        assert_eq!(index.blob_count(), count, "a killed index is counted anew");
        use_it(&index, &mut pen);
    }
});
