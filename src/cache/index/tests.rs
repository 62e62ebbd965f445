use std::{collections::HashMap, fs, sync::atomic::AtomicBool, thread};

use super::*;

/// Files of which only the sizes are known.
#[derive(Default)]
struct Sizes(HashMap<Name, u64>);

impl Files for Sizes {
    fn size_of(&mut self, _: &Index, name: &Name) -> Option<u64> {
        self.0.get(name).copied()
    }

    fn remove(&mut self, _: &Index, name: &Name) {
        self.0.remove(name);
    }
}

fn digest(number: u64) -> Digest {
    Digest::of(&number.to_le_bytes())
}

fn hub() -> Registry {
    Registry::docker_hub()
}

fn entry(index: &Index, number: u64) -> Entry {
    Entry {
        place: Place {
            slot: 0,
            generation: 0,
        },
        name: index.name(&hub(), &digest(number)),
        size: number,
        repository: number ^ 0xabcd,
        last_use: 1_700_000_000 + number,
        frequency: 0,
        is_main: number.is_multiple_of(2),
    }
}

fn put(index: &Index, pen: &mut Pen, number: u64) -> Place {
    index
        .insert(pen, &entry(index, number), Stage::Live)
        .unwrap_or_else(|error| panic!("{number}: {error:?}"))
}

fn take_out(index: &Index, pen: &mut Pen, place: Place) {
    index.begin_removal(pen, place).expect("it is there");
    index.finish_removal(pen, place);
}

fn size_of(index: &Index, number: u64) -> Option<u64> {
    let name = index.name(&hub(), &digest(number));
    index.find(&name).map(|seen| seen.size)
}

#[test]
fn what_was_put_in_is_found_as_it_was() {
    // Far from full, so that two buckets never are: names fall where a random key has them.
    let (index, mut pen) = Index::in_memory(0);
    for number in 0..1500 {
        put(&index, &mut pen, number);
    }
    assert_eq!(index.blob_count(), 1500);
    assert_eq!(index.bytes(), (0..1500).map(on_disk).sum::<u64>());
    for number in 0..1500 {
        let wanted = entry(&index, number);
        let seen = index.find(&wanted.name).expect("found");
        let found = index.entry(seen.place).expect("whole");
        assert_eq!(
            found,
            Entry {
                place: seen.place,
                ..wanted
            }
        );
        assert_eq!(found.name.digest_bytes(), digest(number).as_bytes());
    }
    assert_eq!(size_of(&index, 1500), None);
    let elsewhere = "quay.io".parse().expect("a registry");
    assert!(index.find(&index.name(&elsewhere, &digest(1))).is_none());
    let sha512: Digest = format!("sha512:{}{}", digest(1).hex(), digest(2).hex())
        .parse()
        .expect("a digest");
    assert!(index.find(&index.name(&hub(), &sha512)).is_none());
}

#[test]
fn where_both_buckets_are_full_a_rival_makes_room() {
    let (index, mut pen) = Index::in_memory(0);
    let refused = (0..)
        .find(|number| {
            index
                .insert(&mut pen, &entry(&index, *number), Stage::Live)
                .is_err()
        })
        .expect("not all fit");
    let wanted = entry(&index, refused);
    let rivals: Vec<Entry> = index.rivals(&wanted.name).collect();
    assert_eq!(rivals.len(), 2 * BUCKET);
    assert_eq!(
        index.insert(&mut pen, &wanted, Stage::Live),
        Err(InsertError::Full)
    );
    take_out(&index, &mut pen, rivals[BUCKET].place);
    put(&index, &mut pen, refused);
    assert_eq!(size_of(&index, refused), Some(refused));
    let huge = Entry {
        size: LARGEST_SIZE + 1,
        ..entry(&index, refused + 1)
    };
    assert_eq!(
        index.insert(&mut pen, &huge, Stage::Live),
        Err(InsertError::TooLarge)
    );
}

/// Comings and goings in random order: what is there is found, and nearly all that comes finds a place.
#[test]
fn buckets_are_filled_evenly() {
    for (quarters, most_refused) in [(2, 0), (3, 15)] {
        let (index, mut pen) = Index::in_memory(0);
        let blobs = index.slots() as u64 / 4 * quarters;
        let mut stored: Vec<(u64, Option<Place>)> = (0..blobs)
            .map(|number| {
                let entry = entry(&index, number);
                (number, index.insert(&mut pen, &entry, Stage::Live).ok())
            })
            .collect();
        let mut random = 1_u64;
        let mut refused = 0;
        for number in blobs..20 * blobs {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let gone = &mut stored[((random >> 33) % blobs) as usize];
            if let Some(place) = gone.1 {
                take_out(&index, &mut pen, place);
            }
            let entry = entry(&index, number);
            *gone = (number, index.insert(&mut pen, &entry, Stage::Live).ok());
            refused += u64::from(gone.1.is_none());
        }
        for (number, place) in &stored {
            assert_eq!(size_of(&index, *number), place.map(|_| *number));
        }
        assert!(
            refused * 1000 <= most_refused * 19 * blobs,
            "at a load of {quarters}/4: {refused} of {} refused",
            19 * blobs
        );
    }
}

#[test]
fn uses_are_counted_up_to_three() {
    let (index, mut pen) = Index::in_memory(0);
    put(&index, &mut pen, 1);
    let name = index.name(&hub(), &digest(1));
    let find = || index.find(&name).expect("there");
    let now = 1_800_000_000;
    for frequency in 1..=3 {
        assert!(index.touch(&find(), now));
        let entry = index.entry(find().place).expect("whole");
        assert_eq!((entry.frequency, entry.last_use), (frequency, now));
    }
    assert!(
        !index.touch(&find(), now + USE_GRAIN - 1),
        "nothing to write"
    );
    assert!(index.touch(&find(), now + USE_GRAIN));
    let entry = index.entry(find().place).expect("whole");
    assert_eq!((entry.frequency, entry.last_use), (3, now + USE_GRAIN));
}

#[test]
fn a_use_of_what_has_gone_does_not_count_for_what_came_after_it() {
    let (index, mut pen) = Index::in_memory(0);
    let place = put(&index, &mut pen, 1);
    let seen = index.find(&index.name(&hub(), &digest(1))).expect("there");
    take_out(&index, &mut pen, place);
    let again = put(&index, &mut pen, 1);
    assert_eq!(again.slot, place.slot, "the first free slot is the same");
    assert!(!index.touch(&seen, 1_800_000_000));
    assert!(!index.is_same(seen.place));
    assert!(index.entry(seen.place).is_none());
    assert!(index.note_repository(&seen, 77, |_| false).is_none());
    assert_eq!(index.entry(again).map(|entry| entry.frequency), Some(0));
}

#[test]
fn a_repository_that_stays_is_not_replaced() {
    let (index, mut pen) = Index::in_memory(0);
    put(&index, &mut pen, 1);
    let seen = index.find(&index.name(&hub(), &digest(1))).expect("there");
    let first = 1 ^ 0xabcd;
    assert_eq!(index.note_repository(&seen, first, |_| false), None);
    assert_eq!(
        index.note_repository(&seen, 5, |before| before == first),
        None
    );
    assert_eq!(index.note_repository(&seen, 5, |_| false), Some(first));
    assert_eq!(
        index.entry(seen.place).map(|entry| entry.repository),
        Some(5)
    );
}

/// Every stage at which a kill may come, with the file as it is then.
#[test]
fn after_a_kill_the_index_says_what_the_files_say() {
    let (index, mut pen) = Index::in_memory(0);
    let mut files = Sizes::default();
    let name = |number| index.name(&hub(), &digest(number));
    for number in 1..=6 {
        files.0.insert(name(number), number);
    }
    // 1: stored. 2: about to be stored, the file has its name. 3: … not yet. 4: … another file has it.
    put(&index, &mut pen, 1);
    for number in 2..=4 {
        let entry = entry(&index, number);
        index
            .insert(&mut pen, &entry, Stage::Committing)
            .expect("room");
    }
    files.0.remove(&name(3));
    files.0.insert(name(4), 44);
    // 5: about to be removed, the file is there. 6: … not any more.
    for number in 5..=6 {
        let place = put(&index, &mut pen, number);
        index.begin_removal(&mut pen, place).expect("there");
    }
    files.0.remove(&name(6));
    // 7: being written.
    let place = put(&index, &mut pen, 7);
    index
        .slot(place.slot as usize)
        .change_control(|control| Some(control.with_state(State::Writing)));
    // 8: a state of which we know nothing.
    let place = put(&index, &mut pen, 8);
    index
        .slot(place.slot as usize)
        .change_control(|control| Some(control.with_state(State::Unknown)));
    // 9: stored, and about to be stored and removed once more, which no version of ours does.
    put(&index, &mut pen, 9);
    let again = entry(&index, 9);
    index
        .insert(&mut pen, &again, Stage::Committing)
        .expect("room");
    let place = index
        .insert(&mut pen, &again, Stage::Committing)
        .expect("room");
    index
        .slot(place.slot as usize)
        .change_control(|control| Some(control.with_state(State::Removing)));
    files.0.insert(name(9), 9);

    let (index, mut pen, condition) = Index::from_bytes(&index.to_bytes(), &mut files)
        .expect("memory")
        .expect("ours");
    assert_eq!(condition, Condition::Recovered);
    let found: Vec<u64> = (1..=9)
        .filter(|number| size_of(&index, *number).is_some())
        .collect();
    assert_eq!(found, [1, 2, 9]);
    let mut left: Vec<u64> = files.0.values().copied().collect();
    left.sort_unstable();
    assert_eq!(left, [1, 2, 9], "files without an entry are removed");
    assert_eq!((index.blob_count(), index.bytes()), (3, 3 * 4096));
    for number in 3..=8 {
        put(&index, &mut pen, number);
    }
    assert_eq!(index.blob_count(), 9);
}

#[test]
fn a_closed_index_is_opened_as_it_was_and_a_killed_one_is_recovered() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("index");
    let mut files = Sizes::default();
    {
        let (index, mut pen, condition) = Index::load(&path, FEWEST_SLOTS, &mut files);
        assert_eq!(condition, Condition::New);
        put(&index, &mut pen, 1);
    }
    // Before it was complete, nobody knew what else was there.
    {
        let (index, mut pen, condition) = Index::load(&path, FEWEST_SLOTS, &mut files);
        assert_eq!(condition, Condition::New);
        assert_eq!(index.blob_count(), 0);
        index.complete(&mut pen);
        put(&index, &mut pen, 2);
    }
    let keys = {
        let (index, mut pen, condition) = Index::load(&path, FEWEST_SLOTS, &mut files);
        assert_eq!(condition, Condition::Recovered);
        put(&index, &mut pen, 3);
        index.close(&mut pen).expect("synced");
        index.keys
    };
    let (index, _, condition) = Index::load(&path, FEWEST_SLOTS, &mut files);
    assert_eq!(condition, Condition::Closed);
    assert_eq!((index.blob_count(), index.bytes()), (2, 2 * 4096));
    assert_eq!(index.keys, keys);
    assert_eq!((size_of(&index, 2), size_of(&index, 3)), (Some(2), Some(3)));
    drop(index);
    // Opening it took the mark away.
    let (_, _, condition) = Index::load(&path, FEWEST_SLOTS, &mut files);
    assert_eq!(condition, Condition::Recovered);
}

#[test]
fn another_size_keeps_what_is_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("index");
    let mut files = Sizes::default();
    {
        let (index, mut pen, _) = Index::load(&path, 4 * FEWEST_SLOTS, &mut files);
        index.complete(&mut pen);
        for number in 0..4000 {
            put(&index, &mut pen, number);
        }
    }
    {
        let (index, _, condition) = Index::load(&path, 2 * FEWEST_SLOTS, &mut files);
        assert_eq!(
            (condition, index.slots()),
            (Condition::Recovered, 2 * FEWEST_SLOTS)
        );
        assert!((0..4000).all(|number| size_of(&index, number) == Some(number)));
        assert_eq!(index.blob_count(), 4000);
    }
    // Into this one they do not go.
    let (index, _, condition) = Index::load(&path, FEWEST_SLOTS, &mut files);
    assert_eq!((condition, index.slots()), (Condition::New, FEWEST_SLOTS));
    assert_eq!(index.blob_count(), 0);
}

#[test]
fn a_foreign_torn_or_older_file_is_not_trusted() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("index");
    let mut files = Sizes::default();
    {
        let (index, mut pen, _) = Index::load(&path, FEWEST_SLOTS, &mut files);
        put(&index, &mut pen, 1);
        index.close(&mut pen).expect("synced");
    }
    let good = fs::read(&path).expect("read");
    let changed = |word: usize, change: u8| {
        let mut bytes = good.clone();
        bytes[word * 8] ^= change;
        bytes
    };
    let mut other_boot = changed(8, 1);
    other_boot[6 * 8] ^= 1;
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("short", good[..good.len() - 64].to_vec()),
        ("long", [&good[..], &[0; 64]].concat()),
        ("only a header", good[..4096].to_vec()),
        ("magic", changed(0, 1)),
        ("version", changed(1, 64)),
        ("slot count", changed(2, 1)),
        ("keys", changed(3, 1)),
        ("checksum", changed(5, 1)),
        ("totals", changed(9, 1)),
        ("state", changed(8, 2)),
        ("in use during another boot", other_boot),
        ("zeros", vec![0; good.len()]),
    ] {
        fs::write(&path, bytes).expect("written");
        let (index, mut pen, condition) = Index::load(&path, FEWEST_SLOTS, &mut files);
        assert_eq!(condition, Condition::New, "{what}");
        assert_eq!(size_of(&index, 1), None, "{what}");
        put(&index, &mut pen, 2);
        assert_eq!(size_of(&index, 2), Some(2), "{what}");
    }
    fs::write(&path, &good).expect("written");
    let (index, _, condition) = Index::load(&path, FEWEST_SLOTS, &mut files);
    assert_eq!(
        (condition, size_of(&index, 1)),
        (Condition::Closed, Some(1))
    );
}

#[test]
fn where_the_disk_has_no_room_the_index_is_kept_in_memory() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("no such folder/index");
    let (index, mut pen, condition) = Index::load(&path, FEWEST_SLOTS, &mut Sizes::default());
    assert_eq!(condition, Condition::New);
    put(&index, &mut pen, 1);
    index.complete(&mut pen);
    index.close(&mut pen).expect("nothing to sync");
    assert_eq!(size_of(&index, 1), Some(1));
}

/// Readers race a writer that fills, removes and refills: whatever they find belongs together.
#[test]
fn readers_never_see_a_mixture() {
    const BLOBS: u64 = 256;
    let (index, mut pen) = Index::in_memory(0);
    let is_over = AtomicBool::new(false);
    let names: Vec<Name> = (0..BLOBS)
        .map(|number| index.name(&hub(), &digest(number)))
        .collect();
    // Each name's size says which name it is, and each repository which size.
    let size = |number: u64, round: u64| round * BLOBS + number;
    thread::scope(|scope| {
        for reader in 0..3 {
            let (index, names, is_over) = (&index, &names, &is_over);
            scope.spawn(move || {
                let mut found = 0_u64;
                let mut step = reader;
                while !is_over.load(Ordering::Relaxed) || found == 0 {
                    step = (step + 7) % names.len();
                    let Some(seen) = index.find(&names[step]) else {
                        continue;
                    };
                    assert_eq!(seen.size % BLOBS, step as u64);
                    index.touch(&seen, 1_800_000_000 + seen.size);
                    if let Some(entry) = index.entry(seen.place) {
                        assert_eq!(entry.name, names[step]);
                        assert_eq!(entry.size, seen.size);
                        assert_eq!(entry.repository, seen.size ^ 0x5555);
                        found += 1;
                    }
                }
            });
        }
        let mut places = HashMap::new();
        for round in 0..400 {
            for number in 0..BLOBS {
                if let Some(place) = places.remove(&number) {
                    take_out(&index, &mut pen, place);
                }
                // Another takes its slot in half of the rounds.
                let number = (number + round % 2) % BLOBS;
                if places.contains_key(&number) {
                    continue;
                }
                let size = size(number, round);
                let entry = Entry {
                    size,
                    repository: size ^ 0x5555,
                    ..entry(&index, number)
                };
                let place = index.insert(&mut pen, &entry, Stage::Live).expect("room");
                places.insert(number, place);
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(index.blob_count(), index.entries().count() as u64);
    let bytes: u64 = index.entries().map(|entry| on_disk(entry.size)).sum();
    assert_eq!(index.bytes(), bytes);
}

/// A little of what the fuzz target does, in every run.
#[test]
fn spoiled_slots_neither_panic_nor_spoil_the_accounts() {
    let (good, mut pen) = Index::in_memory(0);
    for number in 0..40 {
        put(&good, &mut pen, number);
    }
    let bytes = good.to_bytes();
    let used: Vec<usize> = good
        .entries()
        .map(|entry| entry.place.slot as usize)
        .collect();
    let mut random = 7_u64;
    let mut draw = move |below: usize| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(random >> 33).expect("31 bits") % below
    };
    for _ in 0..200 {
        let mut bytes = bytes.clone();
        for _ in 0..1 + draw(30) {
            let slot = match draw(2) {
                0 => used[draw(used.len())],
                _ => draw(good.slots()),
            };
            bytes[4096 + slot * 64 + draw(64)] = u8::try_from(draw(256)).expect("a byte");
        }
        let (index, mut pen, _) = Index::from_bytes(&bytes, &mut Sizes::default())
            .expect("memory")
            .expect("the header is good");
        let entries: Vec<Entry> = index.entries().collect();
        assert_eq!(index.blob_count(), entries.len() as u64);
        for entry in entries {
            assert!(entry.size <= LARGEST_SIZE);
            assert!(index.find(&entry.name).is_some(), "{entry:?}");
            take_out(&index, &mut pen, entry.place);
        }
        assert_eq!((index.blob_count(), index.bytes()), (0, 0));
        assert_eq!(index.entries().count(), 0);
    }
}
