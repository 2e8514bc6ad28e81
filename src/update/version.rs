//! Which of two gateway versions is older.

/// Whether `this` is certainly older than `that`: by their numbers, since a suffix (`-slim`, `-r20261001`) names
/// a variant or a later build of the same version. False when either is no version.
pub(super) fn is_older(this: &str, that: &str) -> bool {
    match (numbers(this), numbers(that)) {
        (Some(this), Some(that)) => this < that,
        _ => false,
    }
}

/// The numbers of a version without its suffix; `None` when it is no version.
pub(crate) fn numbers(version: &str) -> Option<Vec<u32>> {
    let numbers = version.split(['-', '+']).next()?;
    numbers.split('.').map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        let cases = [
            ("2026.8.2", "2026.9.6", true),
            ("2026.9.6", "2026.8.2", false),
            ("2026.9.6", "2026.9.10", true),
            ("2026.9.6", "2026.9.6", false),
            ("2026.9.6-slim", "2026.9.6", false),
            ("2026.9.6", "2026.9.6-r20261001", false),
            ("2026.9.5-r20261001", "2026.9.6-slim", true),
            ("main", "2026.9.6", false),
            ("2026.9.6", "main", false),
        ];
        for (this, that, older) in cases {
            assert_eq!(is_older(this, that), older, "{this} {that}");
        }
    }
}
