/* Every option and command of weft, as data. To add an option: a member in settings.h and a row here. */
#include "options.h"

#define RUN    WEFT_COMMAND_RUN
#define SERVE  WEFT_COMMAND_SERVE
#define INFO   WEFT_COMMAND_INFO
#define DOCTOR WEFT_COMMAND_DOCTOR
#define BENCH  WEFT_COMMAND_BENCH
#define ENGINE (RUN | SERVE | BENCH)
#define ALL    WEFT_COMMAND_ALL
#define AT(m)  .offset = offsetof(struct weft_settings, m)
#define U32MAX 4294967295.0

static const char *const cpu_levels[] = {"ref", "avx2", "avx512", "avx512vnni", NULL};
static const char *const comms[] = {"auto", "self", "shm", "tcp", "ucx", "mpi", "nccl", "peer", NULL};
static const char *const numerics[] = {"exact", "reference", "fast", NULL};
static const char *const kv_dtypes[] = {"f32", "bf16", NULL};
static const char *const weights[] = {"local", "stream", NULL};
static const char *const quantizations[] = {"none", "bf16", "q8_0", "q4_0", NULL};
static const char *const outputs[] = {"text", "json", NULL};

static const char prompt_group[] = "Prompt";
static const char sampling_group[] = "Sampling";
static const char server_group[] = "Server";
static const char bench_group[] = "Measuring";
static const char model_group[] = "Model and memory";
static const char rank_group[] = "Ranks and speed";
static const char ssh_group[] = "Ranks over ssh (without MPI)";
static const char hand_group[] = "Ranks started by hand or by a scheduler";
static const char output_group[] = "Output";

/* clang-format off */
const struct weft_option weft_options[] = {
    {"prompt", 'p', WEFT_OPTION_TEXT, RUN, prompt_group, "TEXT",
     "text to continue; also the one argument without an option. Without it the prompt is read from standard input",
     NULL, NULL, AT(prompt)},
    {"prompt-file", 'f', WEFT_OPTION_TEXT, RUN, prompt_group, "FILE",
     "read the prompt from FILE (- is standard input); one newline at its end is left out", NULL, NULL,
     AT(prompt_file)},
    {"raw", 0, WEFT_OPTION_FLAG, RUN, prompt_group, NULL, "do not add the tokenizer's own begin-of-text token", NULL,
     NULL, AT(is_raw)},
    {"max-tokens", 'n', WEFT_OPTION_U32, RUN, prompt_group, "N", "make at most N tokens", "256", NULL, AT(max_tokens),
     .min = 1, .max = U32MAX},
    {"stop", 0, WEFT_OPTION_TEXT_LIST, RUN, prompt_group, "TEXT",
     "end the answer before TEXT; may be given up to 16 times", NULL, NULL, AT(stop)},
    {"ignore-eos", 0, WEFT_OPTION_FLAG, RUN, prompt_group, NULL, "go on after the end-of-sequence token", NULL, NULL,
     AT(is_eos_ignored)},

    {"temperature", 't', WEFT_OPTION_F32, RUN, sampling_group, "X", "0 always takes the most likely token", "0", NULL,
     AT(temperature), .min = 0, .max = 100},
    {"top-k", 0, WEFT_OPTION_U32, RUN, sampling_group, "K", "sample from the K most likely tokens; 0: from all", "0",
     NULL, AT(top_k), .min = 0, .max = U32MAX},
    {"top-p", 0, WEFT_OPTION_F32, RUN, sampling_group, "P",
     "sample from the most likely tokens that together have probability P", "1", NULL, AT(top_p), .min = 1e-6,
     .max = 1},
    {"min-p", 0, WEFT_OPTION_F32, RUN, sampling_group, "P",
     "leave out tokens less likely than P times the most likely one", "0", NULL, AT(min_p), .min = 0, .max = 0.999999},
    {"repetition-penalty", 0, WEFT_OPTION_F32, RUN, sampling_group, "X",
     "over prompt and answer, as Hugging Face; 1: off", "1", NULL, AT(repetition_penalty), .min = 0.01, .max = 100},
    {"presence-penalty", 0, WEFT_OPTION_F32, RUN, sampling_group, "X", "over the answer, as OpenAI; 0: off", "0", NULL,
     AT(presence_penalty), .min = -100, .max = 100},
    {"frequency-penalty", 0, WEFT_OPTION_F32, RUN, sampling_group, "X", "over the answer, as OpenAI; 0: off", "0",
     NULL, AT(frequency_penalty), .min = -100, .max = 100},
    {"seed", 's', WEFT_OPTION_U64, RUN, sampling_group, "S", "same seed, same answer, on any number of ranks", "0",
     NULL, AT(seed)},

    {"grpc", 'g', WEFT_OPTION_TEXT, SERVE, server_group, "HOST:PORT",
     "listen for gRPC here (0.0.0.0:PORT for every interface, port 0 for a free one)", "127.0.0.1:50051", "WEFT_GRPC",
     AT(grpc)},
    {"http", 0, WEFT_OPTION_TEXT, SERVE, server_group, "HOST:PORT",
     "listen for HTTP here: GET /metrics (Prometheus) and GET /health. Meant for a trusted network, as gRPC is", "off",
     "WEFT_HTTP", AT(http)},
    {"drain", 0, WEFT_OPTION_TIME, SERVE, server_group, "TIME",
     "after SIGTERM let running requests go on for this long before they are cancelled", "0s", "WEFT_DRAIN",
     AT(drain_ms), .min = 0, .max = 86400},
    {"pid-file", 0, WEFT_OPTION_TEXT, SERVE, server_group, "FILE",
     "the leader writes its process number here once it serves, for scripts that signal it; removed at the end",
     "none", NULL, AT(pid_file)},
    {"sequences", 0, WEFT_OPTION_U32, SERVE | INFO, server_group, "N", "requests that run at once", "16",
     "WEFT_SEQUENCES", AT(sequences), .min = 1, .max = 4096},
    {"queue", 0, WEFT_OPTION_U32, SERVE, server_group, "N", "requests that may wait; more are refused", "1024",
     "WEFT_QUEUE", AT(queue), .min = 1, .max = 1048576},

    {"batch", 'b', WEFT_OPTION_NUMBER_LIST, BENCH, bench_group, "N,...", "requests at once, one row of figures for each",
     "1", NULL, AT(batch), .min = 1, .max = 4096},
    {"prompt-tokens", 0, WEFT_OPTION_U32, BENCH, bench_group, "N", "length of every prompt", "128", NULL,
     AT(prompt_tokens), .min = 1, .max = 1048576},
    {"max-tokens", 'n', WEFT_OPTION_U32, BENCH, bench_group, "N", "tokens that every request makes", "64", NULL,
     AT(bench_tokens), .min = 2, .max = 1048576},
    {"rounds", 0, WEFT_OPTION_U32, BENCH, bench_group, "N", "rounds that the medians are of; one more warms up", "5",
     NULL, AT(rounds), .min = 1, .max = 1000},

    {"model", 'm', WEFT_OPTION_TEXT, ENGINE | INFO, model_group, "DIR", "model folder in Hugging Face form", "the demo model",
     "WEFT_MODEL", AT(model)},
    {"model", 'm', WEFT_OPTION_TEXT, DOCTOR, model_group, "DIR", "would it fit, is it the same on every host", "none",
     "WEFT_MODEL", AT(model)},
    {"weights", 0, WEFT_OPTION_CHOICE, ENGINE, model_group, "local|stream",
     "local: every rank reads its part of the model folder; stream: rank 0 reads it once and sends the others theirs, "
     "which need no folder", "local", "WEFT_WEIGHTS", AT(weights), .choices = weights},
    {"quantize", 0, WEFT_OPTION_CHOICE, ALL, model_group, "none|bf16|q8_0|q4_0",
     "weights in memory: as they are stored, or quantised while they are loaded, 8.5 or 4.5 bits each; fewer bits are "
     "faster and change the numbers; bf16: FP8 as bf16, the same numbers", "none", "WEFT_QUANTIZE", AT(quantize), .choices = quantizations},
    {"context", 'c', WEFT_OPTION_U32, RUN | SERVE | INFO | DOCTOR, model_group, "N", "positions per request, prompt and answer together",
     "the model's", "WEFT_CONTEXT", AT(context), .min = 1, .max = U32MAX},
    {"memory", 0, WEFT_OPTION_SIZE, ALL, model_group, "SIZE",
     "per rank, for weights, KV cache and activations: 4GiB, 512MiB", "90 % of what is free", "WEFT_MEMORY",
     AT(memory)},
    {"kv-dtype", 0, WEFT_OPTION_CHOICE, ALL, model_group, "f32|bf16",
     "KV cache; bf16 halves it and changes the numbers", "f32", "WEFT_KV_DTYPE", AT(kv_dtype), .choices = kv_dtypes},
    {"kv-tokens", 0, WEFT_OPTION_U32, ALL, model_group, "N", "positions of KV cache in all", "what fits",
     "WEFT_KV_TOKENS", AT(kv_tokens), .min = 1, .max = U32MAX},

    {"ranks", 'r', WEFT_OPTION_U32, ALL, rank_group, "N",
     "processes that share the model on this host; under mpirun its ranks are used", "1", "WEFT_RANKS", AT(ranks),
     .min = 1, .max = 1024},
    {"threads", 0, WEFT_OPTION_U32, ENGINE | DOCTOR, rank_group, "N", "CPU threads per rank", "cores / ranks",
     "WEFT_THREADS", AT(threads), .min = 1, .max = 1024},
    {"shares", 0, WEFT_OPTION_NUMBER_LIST, ALL, rank_group, "auto|A,B,...",
     "how much of the model each rank takes, in proportion: 3,1; auto: by how fast each reads weights, measured at "
     "start; does not change the answer", "equal", "WEFT_SHARES", AT(shares), .min = 1,
     .max = 1000000},
    {"leaves", 0, WEFT_OPTION_U32, ALL, rank_group, "V",
     "parts the model can be split into, the most ranks it can have; changes the numbers", "8", "WEFT_LEAVES",
     AT(leaves), .min = 1, .max = 64},
    {"prefill-chunk", 0, WEFT_OPTION_U32, ENGINE, rank_group, "N",
     "prompt tokens per step; does not change the answer", "256; 2048 with --numerics fast", "WEFT_PREFILL_CHUNK",
     AT(prefill_chunk), .min = 1, .max = 1048576},
    {"device", 'd', WEFT_OPTION_TEXT, ALL, rank_group, "auto|cpu|cuda[:N]",
     "what ranks run on: a GPU each when every rank has one, else CPUs; cuda: a GPU each; cuda:N: all on GPU N", "auto",
     "WEFT_DEVICE", AT(device)},
    {"numerics", 0, WEFT_OPTION_CHOICE, ENGINE | DOCTOR, rank_group, "exact|reference|fast",
     "on GPUs: exact gives the same bits for any ranks, batch and chunk; reference the bits of CPUs, slowly; fast has "
     "prompts multiplied by cuBLASLt, where it is there. On CPUs always exact", "exact", "WEFT_NUMERICS", AT(numerics),
     .choices = numerics},
    {"eager", 0, WEFT_OPTION_FLAG, ENGINE, rank_group, NULL,
     "on GPUs: issue every operation of a decode step instead of replaying CUDA graphs; slower, the same answer", NULL,
     "WEFT_EAGER", AT(is_eager)},
    {"cuda-module", 0, WEFT_OPTION_TEXT, ALL, rank_group, "FILE",
     "the library that drives GPUs; for tests", "weft_cuda.so beside weft", "WEFT_CUDA_MODULE", AT(cuda_module)},
    {"cpu-level", 0, WEFT_OPTION_CHOICE, ENGINE, rank_group, "ref|avx2|avx512|avx512vnni",
     "instruction set; does not change the answer", "best of this machine", "WEFT_CPU_LEVEL", AT(cpu_level),
     .choices = cpu_levels},
    {"comm", 0, WEFT_OPTION_CHOICE, ENGINE | DOCTOR, rank_group, "auto|self|shm|tcp|ucx|mpi|nccl",
     "how ranks talk (nccl: between GPUs); does not change the answer", "auto", "WEFT_COMM", AT(comm), .choices = comms},
    {"interface", 0, WEFT_OPTION_TEXT, ENGINE | DOCTOR, rank_group, "NAME|CIDR,...", "networks between hosts, by preference: eth0,10.0.0.0/8,fd00::/64",
     "by route", "WEFT_INTERFACE", AT(interface)},
    {"timeout", 0, WEFT_OPTION_TIME, ENGINE | DOCTOR, rank_group, "TIME", "longest wait between ranks while none does any work",
     "30s", "WEFT_TIMEOUT", AT(timeout_ms), .min = 0.1, .max = 86400},
    {"rendezvous-timeout", 0, WEFT_OPTION_TIME, ENGINE | DOCTOR, rank_group, "TIME",
     "how long ranks wait for each other to start, and for a sign of life while loading", "60s",
     "WEFT_RENDEZVOUS_TIMEOUT", AT(rendezvous_timeout_ms), .min = 0.1, .max = 86400},
    {"heartbeat", 0, WEFT_OPTION_TIME, ENGINE | DOCTOR, rank_group, "TIME",
     "a rank that is silent for this long is given up, whatever it was doing; 0: never (to stop one in a debugger)",
     "900ms", "WEFT_HEARTBEAT", AT(heartbeat_ms), .min = 0, .max = 3600},

    {"hosts", 0, WEFT_OPTION_TEXT, ENGINE | DOCTOR, ssh_group, "A,B:2,...",
     "start the ranks over ssh, one or so many on each host; the first is this one. Model and weft at the same paths", NULL,
     "WEFT_HOSTS", AT(hosts)},
    {"hostfile", 0, WEFT_OPTION_TEXT, RUN | SERVE | DOCTOR, ssh_group, "FILE",
     "the same from a file as mpirun takes it: \"HOST slots=N\" a line", NULL, NULL, AT(hostfile)},
    {"ssh", 0, WEFT_OPTION_TEXT, ENGINE | DOCTOR, ssh_group, "COMMAND", "ssh and its options: \"ssh -p 2222 -i key\"",
     "ssh", "WEFT_SSH", AT(ssh)},
    {"remote-path", 0, WEFT_OPTION_TEXT, ENGINE | DOCTOR, ssh_group, "FILE", "weft on the other hosts",
     "the path of this one", "WEFT_REMOTE_PATH", AT(remote_path)},

    {"leader", 0, WEFT_OPTION_TEXT, ENGINE | DOCTOR, hand_group, "HOST:PORT",
     "where rank 0 listens and the others connect; needs --rank and --ranks, or a launcher that gives them", NULL, "WEFT_LEADER", AT(leader)},
    {"rank", 0, WEFT_OPTION_U32, ENGINE | DOCTOR, hand_group, "R", "number of this process, from 0", NULL, "WEFT_RANK",
     AT(rank), .min = 0, .max = 1023},
    {"local-ranks", 0, WEFT_OPTION_U32, ENGINE | DOCTOR, hand_group, "K",
     "this process starts K ranks on its host, from its own number on; for launchers that start one process a host", "1",
     "WEFT_LOCAL_RANKS", AT(local_ranks), .min = 1, .max = 64},
    {"leader-port", 0, WEFT_OPTION_U32, ENGINE | DOCTOR, hand_group, "PORT",
     "where rank 0 listens, when the launcher names the host only", "20000; by job under Slurm", "WEFT_LEADER_PORT",
     AT(leader_port), .min = 1, .max = 65535},
    {"rank-count", 0, WEFT_OPTION_U32, ENGINE | DOCTOR, hand_group, "N", "the same as --ranks", NULL, "WEFT_RANK_COUNT",
     AT(ranks), .min = 1, .max = 1024},
    {"secret-file", 0, WEFT_OPTION_TEXT, ENGINE | DOCTOR, hand_group, "FILE",
     "file with a secret that every rank must show; or the variable WEFT_SECRET", "none", "WEFT_SECRET_FILE", AT(secret_file)},

    {"output", 'o', WEFT_OPTION_CHOICE, RUN | INFO | DOCTOR | BENCH, output_group, "text|json",
     "json prints one object on standard output and nothing else", "text", NULL, AT(output), .choices = outputs},
    {"quiet", 'q', WEFT_OPTION_FLAG, ALL, output_group, NULL, "errors only: no progress, tables or timings", NULL,
     NULL, AT(is_quiet)},
    {"verbose", 'v', WEFT_OPTION_FLAG, ALL, output_group, NULL, "log every decision", NULL, NULL, AT(is_verbose)},
    {"help", 'h', WEFT_OPTION_FLAG, ALL, output_group, NULL, "show this and exit", NULL, NULL, AT(is_help)},
};
/* clang-format on */
_Static_assert(sizeof(weft_options) / sizeof(weft_options[0]) <= WEFT_OPTION_MAX, "options.c has room for this many");
const size_t weft_option_count = sizeof(weft_options) / sizeof(weft_options[0]);

const struct weft_command_text weft_commands[] = {
    {WEFT_COMMAND_RUN, "run", "answer one prompt on the terminal", "[--prompt] TEXT [OPTION...]",
     "Loads the model, continues the prompt, streams the text to standard output and prints timings to standard error.",
     "prompt",
     "  weft run --prompt '12+30='                         the demo model, one process\n"
     "  weft run --ranks 2 --model DIR --prompt 'Once'     two processes share the model\n"
     "  mpirun -n 4 weft run --model DIR --prompt 'Once'   ranks on every host of mpirun's\n"
     "  weft run --model DIR --output json < prompt.txt    for programs\n"},
    {WEFT_COMMAND_SERVE, "serve", "serve a model over gRPC", "[--grpc HOST:PORT] [--http HOST:PORT] [OPTION...]",
     "Loads the model and answers weft.v1.Inference (runtime/serve/weft.proto) and grpc.health.v1.Health until SIGTERM "
     "or SIGINT: the first cancels what runs (see --drain) and stops every rank, a second stops at once.",
     NULL,
     "  weft serve                                              the demo model on 127.0.0.1:50051\n"
     "  weft serve --model DIR --ranks 2 --grpc 0.0.0.0:50051   two processes, every interface\n"
     "  weft serve --http 127.0.0.1:9001                        and http://127.0.0.1:9001/metrics\n"
     "  weft serve --hosts here,b,c:2 --model DIR               and over ssh on b and, two of them, on c\n"
     "  mpirun -n 4 weft serve --model DIR                      rank 0 listens\n"},
    {WEFT_COMMAND_INFO, "info", "show what a model folder is and what each rank would hold", "[MODEL] [OPTION...]",
     "Reads the configuration only, no weights, and starts nothing.", "model",
     "  weft info DIR --ranks 4                 bytes per rank\n"
     "  weft info DIR --ranks 3 --shares 2,1,1  with uneven shares\n"},
    {WEFT_COMMAND_DOCTOR, "doctor", "look at ranks, hosts and links, and say what would hurt", "[OPTION...]",
     "Starts the ranks as run and serve would, loads nothing, and shows what each rank may use, how fast each link is, "
     "and "
     "one line per finding: what, where, why, what to change. A model is only looked at when --model names one. Exit "
     "code "
     "0: all well; 1: something would hurt or fail.",
     NULL,
     "  weft doctor --ranks 2 --model DIR           this host\n"
     "  mpirun -n 4 weft doctor --model DIR         the ranks and hosts of mpirun's\n"
     "  weft doctor --ranks 2 --output json         for programs\n"},
    {WEFT_COMMAND_BENCH, "bench", "measure how fast prompts are read and tokens made", "[OPTION...]",
     "Starts the ranks as run and serve would, sends requests of pseudo-random tokens and prints tokens per second, "
     "medians over rounds, for each batch size. Weights may be random: what the tokens are does not matter.",
     "model",
     "  weft bench DIR                              one request at a time\n"
     "  weft bench DIR --ranks 2 --batch 1,8,32     two processes, three batch sizes\n"
     "  mpirun -n 4 weft bench DIR --output json    over every host of mpirun's, for programs\n"},
};
const size_t weft_command_count = sizeof(weft_commands) / sizeof(weft_commands[0]);
