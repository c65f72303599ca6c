use aqlm_formats::model::Model;
use aqlm_vocabulary::{FinetuneReport, LayerReport};

use super::*;
use crate::backends::BackendKind;
use crate::protocol::Protocol;
use crate::{Difference, EndToEndReport, EndToEndSettings, Preset};

/// Numbers that are large, tiny, or have a long shortest decimal.
const NUMBERS: [f64; 4] = [1.0 / 3.0, 0.1 + 0.2, 6.02214076e23, f64::MIN_POSITIVE];

fn tuned() -> EndToEndReport {
    EndToEndReport {
        loss_before: NUMBERS[0],
        loss_after: NUMBERS[1],
        train_losses: NUMBERS.to_vec(),
        validation_losses: Vec::new(),
        best_epoch: 2,
        teacher_rest: Some(NUMBERS[3]),
        steps: 7,
        groups_changed: None,
        tokens: u64::MAX,
        seconds: NUMBERS[2],
    }
}

fn quantize() -> QuantizeRecord {
    let layer = LayerSummary {
        name: "model.layers.0.self_attn.q_proj".into(),
        relative_layer_error: NUMBERS[0],
        limit_db: Some(NUMBERS[1]),
        own_tokens: Some(3),
        seconds: 0.25,
        bits_per_parameter: NUMBERS[1],
        parameters: 65_536,
        report: LayerReport {
            initial_error: 1.0,
            relative_error: NUMBERS[0],
            trace: NUMBERS.to_vec(),
            dead_inputs: 3,
        },
    };
    let block = BlockReport {
        block: 0,
        layers: vec![layer],
        finetune: Some(FinetuneReport {
            loss_before: 1.0,
            loss_after: NUMBERS[0],
            train_losses: NUMBERS.to_vec(),
            validation_losses: vec![0.0],
            best_epoch: 1,
        }),
        relative_output_error: NUMBERS[1],
        seconds: 1.5,
    };
    let report = QuantizeReport {
        scheme: "2x8g8".parse().unwrap(),
        bits_per_parameter: NUMBERS[1],
        limit_db: None,
        seconds: 1.5,
        blocks: vec![block],
        largest_hidden_state: 3.5,
    };
    QuantizeRecord::new(report, Some(tuned()), [20, 3], "runs/tiny".into())
}

fn finetune() -> FinetuneRecord {
    FinetuneRecord {
        differences: vec![Difference {
            tensor: "model.norm.weight".into(),
            largest: NUMBERS[3],
        }],
        shared_documents: 1,
        perplexity_before: Some(NUMBERS[2]),
        ..FinetuneRecord::new(
            ["tiny".into(), "tuned".into()],
            None,
            BackendKind::Reference,
            EndToEndSettings::preset(Preset::Paper, 64, 32),
            tuned(),
        )
    }
}

fn inspect() -> InspectRecord {
    InspectRecord {
        quantized_bits_per_parameter: Some(NUMBERS[1]),
        ..InspectRecord::new(
            "a \"quoted\" näme".into(),
            &Model::embedded().unwrap(),
            Some(quantize().into()),
        )
    }
}

fn checked() -> CheckReport {
    let comparison = Comparison::new("nmse: y", NUMBERS[0], NUMBERS[1]);
    CheckReport::new(vec![
        CaseRow::compared("matvec", "a", "cpu", vec![comparison]),
        CaseRow::without("matvec", "b", "cuda", Outcome::Waived, "no GPU"),
        CaseRow::without("decode", "c", "cuda", Outcome::Unsupported, "B is 17"),
        CaseRow::compared("decode", "d", "cpu", Vec::new()),
    ])
}

fn times() -> Times {
    Times {
        median: NUMBERS[0],
        p10: NUMBERS[3],
        p90: NUMBERS[2],
    }
}

fn bench() -> BenchReport {
    let mut timed = KernelRow::new("matvec/k1_gather", Some("8 warps".into()));
    timed.dispatched = true;
    timed.outcome = Outcome::Pass;
    timed.nmse = Some(NUMBERS[0]);
    timed.us = Some(times());
    timed.us_overlapped = Some(1.0);
    timed.bytes = Some(100);
    timed.registers = Some((40, 0));
    let mut failed = KernelRow::new("mine.cu", None).ended(Outcome::Fail, &"wrong");
    failed.worst.push(Worst {
        index: vec![1, 2],
        expected: NUMBERS[1],
        found: -1.0,
        share: NUMBERS[2],
    });
    BenchReport {
        op: "matvec".into(),
        scheme: "2x8g8".into(),
        activations: "f16".into(),
        out_features: 8,
        in_features: 16,
        device: Some("a GPU".into()),
        memory: Some(MemoryRate {
            read: NUMBERS[2],
            copy: NUMBERS[1],
        }),
        dense: "f16".into(),
        cases: vec![BenchCase {
            batch: 1,
            dense: Some(times()),
            least_bytes: 12,
            roofline_us: Some(NUMBERS[0]),
            kernels: vec![timed, failed],
        }],
        waived: None,
    }
}

fn table() -> TableRecord {
    let figure = |value| Figure {
        value,
        deviation: Some(NUMBERS[3]),
        source: "v4, Table 1".into(),
    };
    TableRecord {
        id: "1".into(),
        title: "t".into(),
        source: "s".into(),
        about: String::new(),
        model: Some(TableModel {
            name: None,
            path: "models/a".into(),
            sha256: Some("ab".into()),
        }),
        columns: vec![TableColumn {
            column: "c4".into(),
            title: "C4".into(),
            what: "perplexity".into(),
            better: Better::Lower,
            decimals: 2,
        }],
        rows: vec![TableRow {
            row: "a".into(),
            model: None,
            method: "AQLM".into(),
            device: None,
            scheme: Some("2x8g8".parse().unwrap()),
            bits: Some(NUMBERS[1]),
            source: None,
            notes: vec!["n".into()],
            ours: Some(OurRuns {
                scheme: None,
                bits: None,
                device: None,
                runs: vec!["runs/a".into()],
            }),
            cells: vec![TableCell {
                column: "c4".into(),
                paper: Some(figure(NUMBERS[0])),
                official: None,
                ours: Some(OurFigure {
                    value: NUMBERS[2],
                    deviation: None,
                    ctx: Some(64),
                    runs: vec![RunFigure {
                        run: "runs/a".into(),
                        value: NUMBERS[2],
                        check: Some("cpu-1".into()),
                    }],
                }),
                difference: Some(-1.0),
                difference_from: Some(Beside::Paper),
                not_compared: None,
            }],
        }],
        checks: vec![TableCheck {
            id: "cpu-1".into(),
            backend: BackendKind::Cpu,
            machine: "m".into(),
            program_sha256: "ab".into(),
            version: "0".into(),
            command: vec!["check".into()],
            pass: 3,
            fail: 0,
            unsupported: 1,
            waived: 0,
            seconds: NUMBERS[0],
        }],
    }
}

fn report() -> ReportRecord {
    ReportRecord {
        out: Some("report.html".into()),
        bytes: Some(123_456),
        tensorboard: None,
        runs: vec!["a".into(), "b".into()],
        seconds: 0.25,
    }
}

fn table_plan() -> TablePlanRecord {
    TablePlanRecord {
        id: "1".into(),
        model: "tiny".into(),
        rate: NUMBERS[0],
        check: "aqlm check".into(),
        cells: vec![PlanCell {
            cell: "a".into(),
            row: "a".into(),
            scheme: None,
            bits: Some(NUMBERS[1]),
            commands: vec!["aqlm eval".into()],
            phases: vec![PlanPhase {
                phase: "evaluation".into(),
                multiply_adds: NUMBERS[2],
                seconds: NUMBERS[3],
            }],
            seconds: NUMBERS[3],
            memory_bytes: 1.0,
            disk_bytes: 0.0,
        }],
        left_out: vec![PlanLeftOut {
            row: "b".into(),
            reason: "no".into(),
        }],
        seconds: NUMBERS[3],
    }
}

/// One record of each kind. Together they contain every field and every kind of field value.
fn examples() -> Vec<Record> {
    let summary = Summary {
        op: "matvec".into(),
        backend: "cpu".into(),
        cases: 2,
        pass: 1,
        fail: 0,
        unsupported: 0,
        waived: 1,
        worst: Some(Comparison::new("y", 0.0, NUMBERS[3])),
        nmse: None,
        reason: Some("no GPU".into()),
    };
    vec![
        DemoRecord {
            scheme: "2x6g8".into(),
            perplexity_before: NUMBERS[0],
            perplexity_after: NUMBERS[1],
            bits_per_parameter: 1.7,
            bytes_before: 2,
            bytes_after: 1,
            text_before: "Once\nupon".into(),
            text_after: String::new(),
            seconds: 60.0,
            out: None,
        }
        .into(),
        FetchRecord {
            path: "models/a".into(),
            source: "already there".into(),
        }
        .into(),
        inspect().into(),
        quantize().into(),
        finetune().into(),
        EvalRecord {
            perplexity: NUMBERS[0],
            mean_nll: NUMBERS[1],
            tokens: 63,
            not_finite: 0,
            windows: 1,
            ctx: 64,
            protocol: Protocol::C4New,
            strict: Some(StrictPerplexity {
                perplexity: NUMBERS[2],
                windows: 255,
            }),
            model: "m".into(),
            data: "d".into(),
            backend: BackendKind::Cuda,
        }
        .into(),
        divergence().into(),
        tasks().into(),
        TaskDocumentRecord {
            task: "mmlu".into(),
            index: 3,
            line: 5,
            group: Some("anatomy".into()),
            gold: 1,
            answers: vec![AnswerRecord {
                log_likelihood: -NUMBERS[0],
                greedy: true,
                tokens: 1,
                characters: 2,
                bytes: 3,
                cut: 4,
            }],
            acc: true,
            acc_norm: Some(false),
            acc_bytes: None,
        }
        .into(),
        SelfgenRecord {
            model: "m".into(),
            out: "texts.jsonl".into(),
            texts: 3,
            tokens: 700,
            ended: 1,
            seqlen: 512,
            temperature: NUMBERS[0],
            top_p: 1.0,
            seed: u64::MAX,
            prompts: Some("p".into()),
            seconds: NUMBERS[1],
            tokens_per_second: NUMBERS[2],
            backend: BackendKind::Cpu,
        }
        .into(),
        GenerateRecord {
            model: "m".into(),
            prompt: "p".into(),
            text: "\u{1F600}\u{0}".into(),
            tokens: vec![0, u32::MAX],
            prompt_tokens: 1,
            seconds: NUMBERS[3],
            tokens_per_second: NUMBERS[2],
            backend: BackendKind::Cpu,
        }
        .into(),
        CrossReport {
            summary: vec![summary],
            report: checked(),
        }
        .into(),
        checked().into(),
        bench().into(),
        DecodeReport {
            model: "llama-2-7b".into(),
            scheme: "2x8g8".into(),
            context: 512,
            device: None,
            outcome: Outcome::Waived,
            reason: Some("no GPU".into()),
            nmse: Some([NUMBERS[0], NUMBERS[1]]),
            memory: Some(MemoryRate {
                read: NUMBERS[1],
                copy: NUMBERS[0],
            }),
            least_bytes: 5,
            roofline_us: Some(NUMBERS[2]),
            us: Some(times()),
            tokens_per_second: Some(NUMBERS[0]),
            stages: vec![StageRow {
                stage: "products".into(),
                launches: 4,
                us: NUMBERS[0],
                bytes: 9,
                roofline_us: NUMBERS[3],
            }],
        }
        .into(),
        TableListRecord {
            tables: vec![TableEntry {
                id: "1".into(),
                title: "t".into(),
                source: "s".into(),
                rows: 2,
                runnable: 1,
                models: vec!["tiny".into()],
            }],
            models: vec!["tiny".into()],
        }
        .into(),
        table().into(),
        table_plan().into(),
        report().into(),
    ]
}

fn tasks() -> TasksRecord {
    let estimate = Estimate {
        value: NUMBERS[0],
        error: NUMBERS[1],
    };
    TasksRecord {
        model: "m".into(),
        backend: BackendKind::Reference,
        bos: crate::protocol::Bos::Never,
        with_bos: false,
        positions: 512,
        seconds: NUMBERS[2],
        tasks: vec![TaskFigures {
            task: "mmlu".into(),
            data: "d".into(),
            shots: 5,
            documents: 7,
            cut: 1,
            not_finite: 0,
            metrics: vec![MetricFigure {
                metric: "acc".into(),
                estimate,
            }],
            groups: vec![GroupFigure {
                group: "anatomy".into(),
                documents: 7,
                estimate,
            }],
        }],
    }
}

fn divergence() -> DivergenceRecord {
    let estimate = Estimate {
        value: NUMBERS[0],
        error: NUMBERS[3],
    };
    let [p99, p75, median, p0_1] = NUMBERS;
    let percentiles = Percentiles {
        maximum: 2.0,
        p99_9: 1.5,
        p99,
        p95: 0.95,
        p90: 0.9,
        p75,
        median,
        p25: 0.25,
        p10: 0.125,
        p5: 0.05,
        p1: 0.01,
        p0_1,
        minimum: -1.0,
    };
    let statistics = Box::new(DivergenceStatistics {
        positions: 7,
        not_finite: 1,
        kl: estimate,
        kl_percentiles: percentiles,
        same_top: estimate,
        delta_p: estimate,
        delta_p_percentiles: percentiles,
        delta_p_rms: estimate,
        perplexity: estimate,
        dense_perplexity: estimate,
        ln_ratio: estimate,
        loss_correlation: NUMBERS[1],
        buckets: vec![Bucket {
            from: 0.0,
            to: 0.1,
            positions: 3,
            kl: estimate,
            same_top: estimate,
        }],
    });
    DivergenceRecord {
        model: "q".into(),
        against: Some("m".into()),
        base: None,
        data: "d".into(),
        protocol: Protocol::LlamaCpp,
        ctx: 512,
        windows: 2,
        backend: BackendKind::Cpu,
        floor: Some(-16.0),
        divergence: statistics.clone(),
        noise_floor: Some(statistics),
    }
}

fn refusal(document: &str) -> String {
    parse(Path::new("a.json"), document.as_bytes())
        .unwrap_err()
        .to_string()
}

#[test]
fn every_record_is_read_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let examples = examples();
    let kinds: Vec<&str> = examples.iter().map(Record::kind).collect();
    assert_eq!(kinds, Record::KINDS);
    for record in examples {
        write(&path, &record).unwrap();
        assert_eq!(read(&path).unwrap(), record);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with(&format!("{{\n  \"record\": \"{}\",\n", record.kind())),
            "{text}"
        );
    }
}

#[test]
fn numbers_that_are_none_are_written_as_null_and_read_as_nan() {
    let mut record = checked();
    record.rows[0].comparisons = vec![Comparison::new("y", f64::NAN, f64::INFINITY)];
    let text = Record::from(record).to_json();
    let Record::Vectors(back) = parse(Path::new("a.json"), text.as_bytes()).unwrap() else {
        panic!("another record")
    };
    let comparison = &back.rows[0].comparisons[0];
    assert!(comparison.value.is_nan() && comparison.limit.is_nan());
    assert_eq!(Record::from(back).to_json(), text);
}

#[test]
fn an_unknown_version_or_kind_is_refused_in_words() {
    let eval = examples()[5].to_json();
    let newer = refusal(&eval.replace("eval/2", "eval/3"));
    assert_eq!(
        newer,
        "a.json: field `record`: expected eval/2, the version that this program reads, found eval/3"
    );
    let other = refusal(&eval.replace("eval/2", "evaluation/1"));
    assert!(
        other.contains("found evaluation/1") && other.contains("one of demo/1"),
        "{other}"
    );
    for (document, found) in [
        ("{\"perplexity\": 1.0}", "found nothing"),
        ("{\"record\": 1}", "found no string"),
        ("[1, 2]", "found no object"),
    ] {
        let refused = refusal(document);
        assert!(
            refused.starts_with("a.json: field `record`: expected one of") && refused.ends_with(found),
            "{refused}"
        );
    }
}

#[test]
fn damage_is_named_by_file_and_place() {
    for record in examples() {
        let text = record.to_json();
        // truncated anywhere
        for part in 1..8 {
            let mut cut = part * text.len() / 8;
            while !text.is_char_boundary(cut) {
                cut -= 1;
            }
            let refused = refusal(&text[..cut]);
            assert!(refused.starts_with("a.json, line "), "{refused}");
        }
        // A missing optional field reads as `None`; any other missing field is rejected by name.
        let Value::Object(fields) = serde_json::from_str(&text).unwrap() else {
            panic!("no object")
        };
        for (name, value) in fields.iter().filter(|(name, _)| *name != "record") {
            let mut less = fields.clone();
            less.remove(name);
            match parse(Path::new("a.json"), Value::Object(less).to_string().as_bytes()) {
                Ok(read) => assert!(read != record || value.is_null(), "{name}"),
                Err(error) => assert!(error.to_string().contains(name), "{name}: {error}"),
            }
            // a value of another type
            let mut other = fields.clone();
            let wrong = if value.is_object() {
                Value::Bool(true)
            } else {
                serde_json::json!({"a": 1})
            };
            other.insert(name.clone(), wrong);
            let refused = refusal(&Value::Object(other).to_string());
            assert!(
                refused.starts_with(&format!("a.json: field `{name}"))
                    && (refused.contains("invalid type") || refused.contains("unknown variant")),
                "{name}: {refused}"
            );
        }
    }
    let text = Record::from(quantize()).to_json();
    let refused = refusal(&text.replace("\"dead_inputs\": 3", "\"dead_inputs\": -3"));
    assert!(
        refused.starts_with(
            "a.json: field `blocks[0].layers[0].report.dead_inputs`: expected what quantize/3 has there"
        ),
        "{refused}"
    );
}
