//! Parallel map.

use std::num::NonZeroUsize;
use std::sync::Mutex;

use super::lock::lock;

/// Number of items that a thread takes at a time. It is small so that no thread waits long for the
/// last one.
const CHUNK_LEN: usize = 16;

/// Applies `work` to each item on as many threads as there are processors, and returns the results
/// in the order of the items.
pub fn map<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    map_chunks(items, CHUNK_LEN, work)
}

/// Like [`map`], for items that take milliseconds each: a thread takes one at a time.
pub fn map_long<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    map_chunks(items, 1, work)
}

fn map_chunks<T: Send, R: Send>(
    items: Vec<T>,
    chunk_len: usize,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let threads = std::thread::available_parallelism()
        .map_or(1, NonZeroUsize::get)
        .min(items.len().div_ceil(chunk_len));
    if threads < 2 {
        return items.into_iter().map(work).collect();
    }
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    let queue = Mutex::new(items.into_iter().zip(results.iter_mut()));
    let worker = || loop {
        let chunk: Vec<_> = lock(&queue).by_ref().take(chunk_len).collect();
        if chunk.is_empty() {
            return;
        }
        for (item, result) in chunk {
            *result = Some(work(item));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // If a thread cannot be started, the other threads do its share.
            let _ = std::thread::Builder::new().name("parallel".into()).spawn_scoped(scope, worker);
        }
        worker();
    });
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_have_the_order_of_the_items() {
        for n in [0, 1, 15, 16, 17, 1000] {
            let expected: Vec<usize> = (0..n).map(|i| i * 2).collect();
            assert_eq!(super::map((0..n).collect(), |i: usize| i * 2), expected);
            assert_eq!(super::map_long((0..n).collect(), |i: usize| i * 2), expected);
        }
    }
}
