use maud::{Markup, html};

use super::table::not_recorded;
use aqlm_engine::report::ReportedRun;

/// Generated texts, side by side for each prompt.
pub(super) fn samples(runs: &[ReportedRun]) -> Markup {
    let mut prompts: Vec<&str> = Vec::new();
    for sample in runs.iter().flat_map(|run| &run.samples) {
        if !prompts.contains(&sample.prompt.as_str()) {
            prompts.push(&sample.prompt);
        }
    }
    html! {
        section id="samples" {
            h2 { "Generated texts" }
            @if prompts.is_empty() {
                (not_recorded("Texts", "Put records of aqlm generate into the run folders as generate-NAME.json."))
            }
            @for prompt in prompts {
                h3 { (prompt) }
                div.samples {
                    @for run in runs {
                        article {
                            h4 { (run.name) }
                            @let found: Vec<_> = run.samples.iter().filter(|sample| sample.prompt == prompt).collect();
                            @if found.is_empty() {
                                p.missing { "not recorded" }
                            }
                            @for sample in found {
                                p { span.prompt { (sample.prompt) } (sample.text) }
                            }
                        }
                    }
                }
            }
        }
    }
}
