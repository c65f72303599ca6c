use std::path::PathBuf;

use aqlm_optimized::cuda::llama::Rung;
use aqlm_vocabulary::Scheme;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::bench::{BenchActivations, BenchOptions, DecodeOptions, LlamaShape};
use crate::commands::bench::BenchRequest;
use crate::commands::{self, Output};
use aqlm_check::cases::Operation;
use aqlm_engine::backends::BackendKind;
use aqlm_formats::{Error, Result};

/// The largest numbers of rows of x, of weights, and of replays.
const MOST_ROWS: usize = 1 << 16;
const MOST_WEIGHTS: usize = 1 << 31;
const MOST_REPLAYS: usize = 1_000_000;

/// Options of `aqlm bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to run on
    #[arg(long, value_enum, default_value = "cuda")]
    backend: BackendKind,
    /// The operation
    #[arg(long, default_value = "matvec", value_parser = products())]
    op: Operation,
    /// The scheme, for example 2x8g8
    #[arg(long, default_value = "2x8g8")]
    scheme: Scheme,
    /// Shape of the weight: out_features x in_features
    #[arg(long, value_name = "OUTxIN", default_value = "11008x4096")]
    shape: String,
    /// The format of x and y on a GPU
    #[arg(long, value_enum, default_value = "f16")]
    activations: BenchActivations,
    /// Rows of x; several separated by commas
    #[arg(long, value_delimiter = ',', value_name = "N", default_value = "1")]
    batch: Vec<usize>,
    /// A CUDA source of your own to check and to time beside the shipped kernels (docs/kernels.md,
    /// kernels/examples)
    #[arg(long, value_name = "FILE.cu")]
    kernel: Option<PathBuf>,
    /// Take the shipped kernels' sources from this folder instead of the program
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Only kernels whose id contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Replays of a graph of calls; 0 checks and times nothing
    #[arg(long, value_name = "N", default_value_t = 60)]
    replays: usize,
    /// Idle milliseconds before each short replay, so that the power limit does not lower the clock
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=10_000))]
    rest: u64,
    /// Number of launch configurations to try of a kernel that has several: the fastest measured one first,
    /// then the others in the order expected
    #[arg(long, value_name = "N", default_value_t = 1)]
    configs: usize,
    /// Only launch configurations whose description contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    config: String,
    /// Plot time against rows of x, with the roofline, into this file
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// Time a token of a whole model instead of one product: these shapes, random weights in --scheme, batch
    /// 1
    #[arg(long, value_enum, value_name = "MODEL")]
    random_weights: Option<LlamaShape>,
    /// With --random-weights: positions that the token attends to
    #[arg(long, value_name = "N", default_value_t = 512)]
    context: usize,
    /// With --random-weights: how a token is computed; each choice adds to the one before
    #[arg(long, value_enum, default_value = "joined")]
    rung: RungName,
    /// Seed of codes, codebooks and inputs
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// [`Rung`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum RungName {
    /// the first kernel of every ladder
    Plain,
    /// the kernels that the table of measurements chooses
    Dispatched,
    /// launches overlap
    Overlapped,
    /// layers that read the same input share a launch
    Joined,
}

impl From<RungName> for Rung {
    fn from(name: RungName) -> Self {
        match name {
            RungName::Plain => Self::Plain,
            RungName::Dispatched => Self::Dispatched,
            RungName::Overlapped => Self::Overlapped,
            RungName::Joined => Self::Joined,
        }
    }
}

pub(super) fn run(args: &Args, output: Output) -> Result<bool> {
    match args.random_weights {
        Some(shape) => commands::decode_bench::run(&args.decode_options(shape)?, output),
        None => commands::bench::run(&args.request()?, output),
    }
}

impl Args {
    fn decode_options(&self, shape: LlamaShape) -> Result<DecodeOptions> {
        if self.backend != BackendKind::Cuda {
            let expected = "cuda with --random-weights, which times whole models on a GPU";
            return Err(Error::argument("--backend", expected, self.backend.to_string()));
        }
        Ok(DecodeOptions {
            shape,
            scheme: self.scheme,
            context: self.context,
            rung: self.rung.into(),
            replays: self.replays,
            seed: self.seed,
            kernel_folder: self.kernels.clone(),
        })
    }

    fn request(&self) -> Result<BenchRequest> {
        let (out_features, in_features) = parse_shape(&self.shape)?;
        self.scheme.groups(out_features, in_features)?;
        if let Some(wrong) = self.batch.iter().find(|batch| !(1..=MOST_ROWS).contains(*batch)) {
            return Err(Error::argument(
                "--batch",
                &format!("1 to {MOST_ROWS} rows"),
                wrong.to_string(),
            ));
        }
        if out_features.saturating_mul(in_features) > MOST_WEIGHTS {
            return Err(Error::argument(
                "--shape",
                &format!("at most {MOST_WEIGHTS} weights, of which the reference makes 8 bytes each"),
                self.shape.clone(),
            ));
        }
        if self.replays > MOST_REPLAYS {
            return Err(Error::argument(
                "--replays",
                &format!("0 to {MOST_REPLAYS}"),
                self.replays.to_string(),
            ));
        }
        if self.op != Operation::Matmul && self.batch != [1] {
            return Err(Error::argument(
                "--batch",
                "1 for matvec and decode; --op matmul takes several rows",
                format!("{:?}", self.batch),
            ));
        }
        if self.backend == BackendKind::Cpu && self.activations != BenchActivations::F16 {
            return Err(Error::argument(
                "--activations",
                "nothing else than the default with --backend cpu, where they are f32",
                self.activations.name(),
            ));
        }
        if self.svg.is_some() && self.replays == 0 {
            return Err(Error::argument("--svg", "at least one of --replays", "0"));
        }
        Ok(BenchRequest {
            backend: self.backend,
            options: BenchOptions {
                op: self.op,
                scheme: self.scheme,
                out_features,
                in_features,
                activations: self.activations,
                batches: self.batch.clone(),
                seed: self.seed,
                replays: self.replays,
                rest: self.rest,
                only: self.only.clone(),
                kernel_folder: self.kernels.clone(),
                user_kernel: self.kernel.clone(),
                configs: self.configs.max(1),
                config: self.config.clone(),
            },
            svg: self.svg.clone(),
        })
    }
}

/// The operations that have kernels.
fn products() -> impl TypedValueParser<Value = Operation> {
    let words = [
        ("matvec", "y = W x"),
        ("matmul", "Y = X W^T for several rows of x"),
        ("decode", "the dense weight from its codes"),
    ];
    let values = words.map(|(word, help)| PossibleValue::new(word).help(help));
    PossibleValuesParser::new(values).try_map(|word| word.parse::<Operation>())
}

fn parse_shape(text: &str) -> Result<(usize, usize)> {
    let size = |part: &str| {
        part.parse::<usize>()
            .ok()
            .filter(|size| (1..=1 << 20).contains(size))
    };
    text.split_once('x')
        .and_then(|(out_features, in_features)| Some((size(out_features)?, size(in_features)?)))
        .ok_or_else(|| Error::argument("--shape", "OUTxIN, for example 11008x4096", text))
}

#[cfg(test)]
mod tests {
    use super::parse_shape;

    #[test]
    fn shapes() {
        assert_eq!(parse_shape("11008x4096").unwrap(), (11008, 4096));
        for bad in ["", "4096", "0x8", "8x", "-1x8", "8x8x8", "8*8", "9999999x8"] {
            assert!(
                parse_shape(bad).unwrap_err().to_string().contains("OUTxIN"),
                "{bad}"
            );
        }
    }
}
