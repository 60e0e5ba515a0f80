//! Much of the same, over all processors.

use std::num::NonZeroUsize;
use std::sync::Mutex;

/// So many are taken at a time: few, so that no thread waits long for the last one to end.
const AT_ONCE: usize = 16;

/// `work` on each of `items`, in their order, on as many threads as there are processors.
pub fn over<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism()
        .map_or(1, NonZeroUsize::get)
        .min(items.len().div_ceil(AT_ONCE));
    if threads < 2 {
        return items.into_iter().map(work).collect();
    }
    let mut done: Vec<Option<R>> = items.iter().map(|_| None).collect();
    let places = items.into_iter().zip(done.iter_mut());
    // Whoever is done with his takes the next ones.
    let waiting = Mutex::new(places);
    let labour = || loop {
        let mine: Vec<_> = match waiting.lock() {
            Ok(mut waiting) => waiting.by_ref().take(AT_ONCE).collect(),
            Err(_) => return,
        };
        if mine.is_empty() {
            return;
        }
        for (item, place) in mine {
            *place = Some(work(item));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // Where no thread can be had, the others do it.
            let _ = std::thread::Builder::new().name("spread".into()).spawn_scoped(scope, labour);
        }
        labour();
    });
    done.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_order_stays() {
        for n in [0, 1, 15, 16, 17, 1000] {
            assert_eq!(
                super::over((0..n).collect(), |i: usize| i * 2),
                (0..n).map(|i| i * 2).collect::<Vec<_>>()
            );
        }
    }
}
