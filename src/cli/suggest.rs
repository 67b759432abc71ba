//! "Did you mean": the nearest known word to one that is not known.

/// The fewest insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`
/// (the optimal string alignment distance). Letters that differ only in case count nothing.
pub fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().map(|c| c.to_ascii_lowercase()).collect();
    let b: Vec<char> = b.chars().map(|c| c.to_ascii_lowercase()).collect();
    // Three rows of the table are enough: a swap looks two rows back.
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

/// The word of `known` nearest to `word`, if one is near enough to be a slip of the fingers: at most a third of the
/// letters wrong, or one the start of the other. Of equally near words the first wins.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word_len = word.chars().count();
    // A very long word is no slip of the fingers, and the table grows with its length.
    if word_len == 0 || word_len > 64 {
        return None;
    }
    let mut best: Option<(usize, &str)> = None;
    for candidate in known {
        let mut d = distance(word, candidate);
        let longer = word_len.max(candidate.chars().count());
        if d * 3 > longer.max(3) {
            let is_start =
                word_len >= 3 && candidate.to_ascii_lowercase().starts_with(&word.to_ascii_lowercase());
            if !is_start {
                continue;
            }
            // Being the start is a weaker sign than any slip of the fingers.
            d += 100;
        }
        if best.is_none_or(|(least, _)| d < least) {
            best = Some((d, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// `; did you mean 'X'?` for the nearest word, with `prefix` before it, or nothing.
pub fn did_you_mean<'a>(prefix: &str, word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map(|n| format!("; did you mean '{prefix}{n}'?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits_and_swaps() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kernel", "kernel"), 0);
        assert_eq!(distance("kernle", "kernel"), 1);
        assert_eq!(distance("nographik", "nographic"), 1);
        assert_eq!(distance("KERNEL", "kernel"), 0);
        assert_eq!(distance("initrd", "initd"), 1);
        assert_eq!(distance("abc", "xyz"), 3);
    }

    #[test]
    fn the_nearest_word_is_found_and_a_far_one_is_not() {
        let known = ["nographic", "no-reboot", "no-shutdown", "monitor", "m", "smp", "serial"];
        assert_eq!(nearest("nographik", known), Some("nographic"));
        assert_eq!(nearest("noreboot", known), Some("no-reboot"));
        assert_eq!(nearest("seriel", known), Some("serial"));
        assert_eq!(nearest("mon", known), Some("monitor"));
        assert_eq!(nearest("snp", known), Some("smp"));
        assert_eq!(nearest("frobnicate", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest(&"m".repeat(100_000), known), None);
    }
}
