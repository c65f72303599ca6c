use aqlm_formats::{Error, Result};

/// How this process was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    /// alone
    Alone,
    /// by the user, with a number of processes that it has to start itself
    Here,
    /// by a launcher; rank 0 is at this address
    Launcher {
        /// host name or address of rank 0
        address: String,
        /// the first of the ports at which rank 0 may listen
        port: u16,
        /// tells this run from others at the same address
        job: String,
    },
}

/// Which of how many processes this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// from 0
    pub rank: usize,
    /// number of processes
    pub size: usize,
    /// this process among those of its host, from 0
    pub local_rank: usize,
    /// processes of this host; 1 where the launcher does not say
    pub local_size: usize,
    /// how it was started
    pub launch: Launch,
}

/// PyTorch's port, where no variable names another.
const USUAL_PORT: u16 = 29500;

/// From torchrun's port to the first of these ranks: far enough that a second torchrun, at the next port,
/// finds its own free.
pub(super) const BEHIND_TORCHRUN: u16 = 100;

/// Most processes of a run: more are a mistyped number.
const MOST: usize = 4096;

/// The names of a launcher's variables: rank, number of ranks, rank on this host, ranks of this host.
type Names = [&'static str; 4];

const TORCHRUN: Names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"];
const OPEN_MPI: Names = [
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
];

impl Place {
    const ALONE: Self = Self {
        rank: 0,
        size: 1,
        local_rank: 0,
        local_size: 1,
        launch: Launch::Alone,
    };

    /// Reads the variables of torchrun, Open MPI and SLURM, in this order, from `variable`. `gpus` is the
    /// number of processes that the user asked this one to start.
    ///
    /// An MPI launcher under SLURM leaves variables of SLURM that describe the launcher, so Open MPI's come
    /// first. SLURM's describe this process only inside a job step (`srun`), not in the batch script.
    ///
    /// # Errors
    /// `Argument` naming a variable that is no number, too large, or missing beside another.
    pub fn of(variable: &dyn Fn(&str) -> Option<String>, gpus: Option<usize>) -> Result<Self> {
        let variables = Variables(variable);
        let place = if variables.has(TORCHRUN[0]) || variables.has(TORCHRUN[1]) {
            Self::by(&variables, TORCHRUN, None)?
        } else if variables.has(OPEN_MPI[0]) || variables.has(OPEN_MPI[1]) {
            Self::by_open_mpi(&variables)?
        } else if variables.has("SLURM_STEP_ID") && variables.has("SLURM_PROCID") {
            Self::by_slurm(&variables)?
        } else {
            Self::ALONE
        };
        match gpus {
            Some(gpus) if !(1..=MOST).contains(&gpus) => {
                Err(Error::argument("gpus", &format!("1 to {MOST}"), gpus.to_string()))
            }
            Some(gpus) if place.launch == Launch::Alone && gpus > 1 => Ok(Self {
                size: gpus,
                local_size: gpus,
                launch: Launch::Here,
                ..Self::ALONE
            }),
            // A process that was started by one of its own is started with the same arguments.
            Some(gpus) if place.launch != Launch::Alone && gpus != place.local_size => Err(Error::argument(
                "gpus",
                &format!(
                    "nothing, because a launcher has started this as one of {} processes",
                    place.size
                ),
                gpus.to_string(),
            )),
            _ => Ok(place),
        }
    }

    fn by_open_mpi(variables: &Variables<'_>) -> Result<Self> {
        let size = variables.number(OPEN_MPI[1], 1)?;
        let local = variables.number(OPEN_MPI[3], 1)?;
        let here = (size == local).then(|| "127.0.0.1".to_owned());
        Self::by(variables, OPEN_MPI, here)
    }

    fn by_slurm(variables: &Variables<'_>) -> Result<Self> {
        // Those of a step differ from the job's when srun was told so.
        let tasks = if variables.has("SLURM_STEP_NUM_TASKS") {
            "SLURM_STEP_NUM_TASKS"
        } else {
            "SLURM_NTASKS"
        };
        let lists = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
        let first = lists.iter().find_map(|name| variables.text(name));
        let names = [
            "SLURM_PROCID",
            tasks,
            "SLURM_LOCALID",
            "SLURM_STEP_TASKS_PER_NODE",
        ];
        Self::by(variables, names, first.map(|list| first_host(&list)))
    }

    /// From a launcher's variables; rank 0 is at MASTER_ADDR, else at `address`.
    fn by(variables: &Variables<'_>, names: Names, address: Option<String>) -> Result<Self> {
        let [rank, size, local_rank, local_size] = names;
        let count = variables.number(size, 1)?;
        if count > MOST {
            return Err(Error::argument(size, &format!("1 to {MOST}"), count.to_string()));
        }
        if count == 1 && !variables.has(rank) {
            return Ok(Self::ALONE);
        }
        let number = variables.number(rank, 0)?;
        if number >= count {
            let expected = format!("less than {size}, which is {count}");
            return Err(Error::argument(rank, &expected, number.to_string()));
        }
        if count == 1 {
            return Ok(Self::ALONE);
        }
        let local = variables.number(local_rank, 0)?;
        if local >= count {
            let expected = format!("less than {size}, which is {count}");
            return Err(Error::argument(local_rank, &expected, local.to_string()));
        }
        let address = variables.text("MASTER_ADDR").or(address);
        let address = address.ok_or_else(|| {
            Error::argument(
                "MASTER_ADDR",
                "the host of rank 0, which these ranks meet at",
                "nothing",
            )
        })?;
        let port = match variables.text("MASTER_PORT") {
            Some(_) => variables.number("MASTER_PORT", 1)?,
            None => usize::from(USUAL_PORT),
        };
        let elastic = variables.text("TORCHELASTIC_RUN_ID");
        // torchrun itself listens at MASTER_PORT.
        let behind = elastic.as_ref().map_or(0, |_| BEHIND_TORCHRUN);
        let first = u16::try_from(port).ok().and_then(|port| port.checked_add(behind));
        let first = first.ok_or_else(|| {
            let expected = format!("a port from 1 to {}", u16::MAX - behind);
            Error::argument("MASTER_PORT", &expected, port.to_string())
        })?;
        let job = [
            // torchrun's usual run id is the same for all runs
            elastic.map(|run| format!("{run}.{port}")),
            variables.text("TORCHELASTIC_RESTART_COUNT"),
            variables.text("PMIX_NAMESPACE"),
            variables.text("SLURM_JOB_ID"),
            variables.text("SLURM_STEP_ID"),
        ];
        Ok(Self {
            rank: number,
            size: count,
            local_rank: local,
            // SLURM writes this as in 2(x3),1; a plain number is for every host
            local_size: match variables.text(local_size) {
                None => 1,
                Some(text) => {
                    let first = text.split(['(', ',']).next().unwrap_or(&text);
                    let number = first.parse().ok().filter(|number| (1..=count).contains(number));
                    number.ok_or_else(|| {
                        Error::argument(local_size, &format!("1 to {size}, {count}"), text.clone())
                    })?
                }
            },
            launch: Launch::Launcher {
                address,
                port: first,
                job: job.into_iter().flatten().collect::<Vec<_>>().join("."),
            },
        })
    }
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn has(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    /// An empty variable is none.
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|text| !text.is_empty())
    }

    fn number(&self, name: &str, least: usize) -> Result<usize> {
        let expected = format!("a number of at least {least}");
        let text = self
            .text(name)
            .ok_or_else(|| Error::argument(name, &expected, "nothing"))?;
        text.parse()
            .ok()
            .filter(|&number| number >= least)
            .ok_or_else(|| Error::argument(name, &expected, text))
    }
}

/// The first host of SLURM's list, as in `gpu[03-05,09],login1`.
fn first_host(list: &str) -> String {
    let mut host = String::new();
    let mut rest = list;
    while let Some(at) = rest.find(['[', ',']) {
        host.push_str(&rest[..at]);
        if rest[at..].starts_with(',') {
            return host;
        }
        let (inside, after) = rest[at + 1..].split_once(']').unwrap_or((&rest[at + 1..], ""));
        host.push_str(inside.split([',', '-']).next().unwrap_or(inside));
        rest = after;
    }
    host.push_str(rest);
    host
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str, gpus: Option<usize>) -> Result<Place> {
        let find = |name: &str| {
            let mut words = text.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        Place::of(&find, gpus)
    }

    #[test]
    fn every_launchers_variables_are_read() {
        let launcher = |rank, size, local_rank, local_size, address: &str, port, job: &str| Place {
            rank,
            size,
            local_rank,
            local_size,
            launch: Launch::Launcher {
                address: address.into(),
                port,
                job: job.into(),
            },
        };
        let torch = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 MASTER_ADDR=a MASTER_PORT=29400";
        assert_eq!(place(torch, None).unwrap(), launcher(5, 8, 1, 4, "a", 29400, ""));
        let elastic = format!("{torch} TORCHELASTIC_RUN_ID=none TORCHELASTIC_RESTART_COUNT=2");
        let expected = launcher(5, 8, 1, 4, "a", 29500, "none.29400.2");
        assert_eq!(place(&elastic, None).unwrap(), expected);
        let mpi = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_RANK=1 \
                   OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_NAMESPACE=77 SLURM_PROCID=0 SLURM_NTASKS=9 SLURM_STEP_ID=0";
        assert_eq!(
            place(mpi, None).unwrap(),
            launcher(1, 2, 1, 2, "127.0.0.1", USUAL_PORT, "77.0")
        );
        let slurm = "SLURM_PROCID=3 SLURM_NTASKS=9 SLURM_STEP_NUM_TASKS=4 SLURM_LOCALID=1 SLURM_JOB_ID=12 \
                     SLURM_STEP_ID=3 SLURM_STEP_NODELIST=gpu[03-05,09],x1 SLURM_STEP_TASKS_PER_NODE=2(x2)";
        assert_eq!(
            place(slurm, None).unwrap(),
            launcher(3, 4, 1, 2, "gpu03", USUAL_PORT, "12.3")
        );
    }

    #[test]
    fn one_process_is_alone_and_the_batch_script_is_no_rank() {
        for text in [
            "",
            "RANK= WORLD_SIZE=",
            "RANK=0 WORLD_SIZE=1",
            "SLURM_PROCID=0 SLURM_NTASKS=4 SLURM_JOB_ID=3",
        ] {
            assert_eq!(place(text, None).unwrap(), Place::ALONE, "{text}");
            assert_eq!(place(text, Some(1)).unwrap(), Place::ALONE, "{text}");
        }
        let here = place("", Some(3)).unwrap();
        assert_eq!((here.size, here.local_size, here.launch), (3, 3, Launch::Here));
    }

    #[test]
    fn what_cannot_be_right_is_refused_by_its_name() {
        for (text, gpus, name) in [
            ("", Some(0), "gpus"),
            ("", Some(100_000), "gpus"),
            ("RANK=0", None, "WORLD_SIZE"),
            ("RANK=0 WORLD_SIZE=99999999999", None, "WORLD_SIZE"),
            ("RANK=5 WORLD_SIZE=1", None, "RANK"),
            (
                "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=0 MASTER_ADDR=a",
                None,
                "LOCAL_WORLD_SIZE",
            ),
            (
                "RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=18446744073709551615 \
                 TORCHELASTIC_RUN_ID=x",
                None,
                "MASTER_PORT",
            ),
            ("WORLD_SIZE=2", None, "RANK"),
            ("RANK=0 WORLD_SIZE=two", None, "WORLD_SIZE"),
            ("RANK=0 WORLD_SIZE=0", None, "WORLD_SIZE"),
            ("RANK=2 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a", None, "RANK"),
            ("RANK=-1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a", None, "RANK"),
            ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=a", None, "LOCAL_RANK"),
            (
                "RANK=1 WORLD_SIZE=2 LOCAL_RANK=7 MASTER_ADDR=a",
                None,
                "LOCAL_RANK",
            ),
            ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=0", None, "MASTER_ADDR"),
            (
                "RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=x",
                None,
                "MASTER_PORT",
            ),
            (
                "RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a MASTER_PORT=70000",
                None,
                "MASTER_PORT",
            ),
            ("RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=a", Some(3), "gpus"),
        ] {
            match place(text, gpus) {
                Err(Error::Argument { what, .. }) => assert_eq!(what, name, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_first_host_of_a_list() {
        for (list, first) in [
            ("a", "a"),
            ("a,b", "a"),
            ("gpu[03-05,09],x1", "gpu03"),
            ("rack[2,3]gpu[7-8]-ib", "rack2gpu7-ib"),
            ("gpu[3", "gpu3"),
        ] {
            assert_eq!(first_host(list), first);
        }
    }
}
