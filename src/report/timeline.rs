//! When each stage of a run began and ended, and which of them the run waited for.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::name::Name;
use crate::stage::Stage;

/// How wide the chart's bars are, in characters.
const WIDTH: u64 = 48;

/// Between the end of a stage and the beginning of the next, the run itself is at work.
const GAP_MS: u64 = 50;

/// A stage in its run. One that is done again has another span.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Span {
    /// Which stage.
    pub stage: Name<Stage>,
    /// Milliseconds from the run's beginning to the stage's.
    pub begin_ms: u64,
    /// Milliseconds from the run's beginning to the stage's end.
    pub end_ms: u64,
}

/// The spans as a chart, a line each in the order of their beginnings. The bars of those for which the run waited are
/// solid.
pub(super) fn chart(spans: &[Span]) -> String {
    let mut spans: Vec<&Span> = spans.iter().collect();
    spans.sort_by_key(|span| (span.begin_ms, span.end_ms));
    let (total, critical) = (spans.iter().map(|span| span.end_ms).max().unwrap_or_default(), critical_path(&spans));
    let column = |ms: u64| usize::try_from(ms * WIDTH / total.max(1)).unwrap_or_default();
    let mut chart = String::new();
    for (index, span) in spans.iter().enumerate() {
        let (begin, end) = (column(span.begin_ms), column(span.end_ms));
        let bar = if critical.contains(&index) { "#" } else { "-" }.repeat((end - begin).max(1));
        let (before, width) = (begin.min(column(total).saturating_sub(1)), column(total).max(1));
        let bar = format!("{:before$}{bar}", "");
        let seconds = |ms: u64| format!("{}.{}", ms / 1000, ms % 1000 / 100);
        let stage = span.stage.to_string();
        let (took, ended) = (seconds(span.end_ms.saturating_sub(span.begin_ms)), seconds(span.end_ms));
        // Writing to a string cannot fail.
        let _ = writeln!(chart, "{stage:<8} |{bar:<width$}| {took:>6} s, until {ended:>6} s");
    }
    chart.push_str("#: the run waited for it");
    chart
}

/// Which spans end one after the other up to the end of the run: the indexes.
fn critical_path(spans: &[&Span]) -> Vec<usize> {
    let mut path: Vec<usize> = Vec::new();
    let (mut begin, mut end) = (u64::MAX, u64::MAX);
    loop {
        let before = spans.iter().enumerate().filter(|(_, span)| span.begin_ms < begin && span.end_ms <= end);
        let Some((index, span)) = before.max_by_key(|(_, span)| (span.end_ms, span.begin_ms)) else { return path };
        path.push(index);
        (begin, end) = (span.begin_ms, span.begin_ms + GAP_MS);
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn span(stage: Stage, begin_ms: u64, end_ms: u64) -> Span {
        Span { stage: stage.into(), begin_ms, end_ms }
    }

    #[test]
    fn the_chart_marks_what_the_run_waited_for() {
        let spans = [
            span(Stage::Metadata, 0, 8),
            span(Stage::Config, 8, 12),
            span(Stage::Disk, 12, 10_062),
            span(Stage::Swap, 12, 13),
            span(Stage::Docker, 12, 12_206),
            span(Stage::Shield, 12_207, 12_600),
            span(Stage::State, 12_601, 12_615),
            span(Stage::Secrets, 12_616, 12_620),
            span(Stage::Image, 12_616, 24_500),
            span(Stage::Gateway, 24_501, 27_400),
            span(Stage::Ready, 27_401, 44_000),
        ];
        expect![[r#"
            metadata |#                                               |    0.0 s, until    0.0 s
            config   |#                                               |    0.0 s, until    0.0 s
            swap     |-                                               |    0.0 s, until    0.0 s
            disk     |----------                                      |   10.0 s, until   10.0 s
            docker   |#############                                   |   12.1 s, until   12.2 s
            shield   |             #                                  |    0.3 s, until   12.6 s
            state    |             #                                  |    0.0 s, until   12.6 s
            secrets  |             -                                  |    0.0 s, until   12.6 s
            image    |             #############                      |   11.8 s, until   24.5 s
            gateway  |                          ###                   |    2.8 s, until   27.4 s
            ready    |                             ###################|   16.5 s, until   44.0 s
            #: the run waited for it"#]]
        .assert_eq(&chart(&spans));
    }

    #[test]
    fn any_spans_have_a_chart() {
        for spans in [vec![], vec![span(Stage::Metadata, 0, 0)], vec![span(Stage::Disk, 5, 5); 3]] {
            let chart = chart(&spans);
            assert_eq!(chart.lines().count(), spans.len() + 1, "{chart}");
        }
    }
}
