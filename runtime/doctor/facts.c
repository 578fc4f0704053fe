/* /proc, /sys, limits, and digests of the program and the model. */
#include "doctor/facts.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "weft/device.h"
#include "weft/log.h"

/* The bracketed word of "always [madvise] never". */
static void read_huge_mode(char *mode, size_t size)
{
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
    char line[64] = "";
    const char *begin;

    snprintf(mode, size, "?");
    if (file == NULL) {
        return;
    }
    begin = fgets(line, sizeof(line), file) != NULL ? strchr(line, '[') : NULL;
    fclose(file);
    if (begin != NULL) {
        snprintf(mode, size, "%.*s", (int)strcspn(begin + 1, "]"), begin + 1);
    }
}

static uint32_t count_numa_nodes(void)
{
    uint32_t count = 0;
    char path[64];

    for (uint32_t node = 0; node < 256; node++) {
        snprintf(path, sizeof(path), "/sys/devices/system/node/node%u", node);
        count += access(path, F_OK) == 0;
    }
    return count > 0 ? count : 1;
}

static void read_cpu_model(char *model, size_t size)
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    char line[256];

    snprintf(model, size, "?");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        const char *colon = strncmp(line, "model name", 10) == 0 ? strstr(line, ": ") : NULL;

        if (colon != NULL) {
            snprintf(model, size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

static int32_t read_sysctl(const char *path)
{
    FILE *file = fopen(path, "re");
    int value = -1;

    if (file != NULL) {
        if (fscanf(file, "%d", &value) != 1) {
            value = -1;
        }
        fclose(file);
    }
    return value;
}

static uint64_t shm_size(void)
{
    struct statvfs shm;

    return statvfs("/dev/shm", &shm) == 0 ? (uint64_t)shm.f_blocks * shm.f_frsize : 0;
}

static uint64_t soft_limit(int resource)
{
    struct rlimit limit;

    if (getrlimit((__rlimit_resource_t)resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return UINT64_MAX;
    }
    return limit.rlim_cur;
}

static bool digest_binary(uint8_t *digest_out)
{
    FILE *file = fopen("/proc/self/exe", "re");
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    unsigned char buffer[16384];
    bool is_done = false;
    size_t got;

    if (file != NULL && digest != NULL && EVP_DigestInit_ex(digest, EVP_sha256(), NULL) == 1) {
        while ((got = fread(buffer, 1, sizeof(buffer), file)) > 0) {
            EVP_DigestUpdate(digest, buffer, got);
        }
        is_done = ferror(file) == 0 && EVP_DigestFinal_ex(digest, digest_out, NULL) == 1;
    }
    if (file != NULL) {
        fclose(file);
    }
    EVP_MD_CTX_free(digest);
    return is_done;
}

/* Second word of the device's name: "cpu avx512, 1 thread". */
static void read_cpu_level(char *level, size_t size)
{
    const struct weft_device_options options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    struct weft_device *device = NULL;
    const char *word;

    snprintf(level, size, "?");
    if (weft_device_open(&options, &device) != WEFT_OK) {
        return;
    }
    word = strchr(weft_device_name(device), ' ');
    if (word != NULL) {
        snprintf(level, size, "%.*s", (int)strcspn(word + 1, ", "), word + 1);
    }
    weft_device_close(&device);
}

static void read_model(const char *folder, struct weft_doctor_facts *facts)
{
    struct weft_engine_options options;
    struct weft_identity identity;
    enum weft_status status;
    bool was_quiet;

    weft_engine_options_init(&options);
    options.model = folder;
    options.device = "cpu";
    options.numerics = "exact";
    options.kv_dtype = "f32";
    options.quantize = "none";
    options.comm = "auto";
    was_quiet = weft_log_set_quiet(true); /* it becomes a finding */
    status = weft_identity_read(&options, &identity);
    (void)weft_log_set_quiet(was_quiet);
    facts->has_model = 1;
    facts->model_status = status;
    if (status == WEFT_OK) {
        memcpy(facts->model, identity.model, sizeof(facts->model));
    } else {
        snprintf(facts->model_error, sizeof(facts->model_error), "%s", weft_log_last_error());
    }
}

void weft_doctor_facts_read_machine(struct weft_doctor_facts *facts_out)
{
    struct weft_doctor_facts *facts = facts_out;
    long online = sysconf(_SC_NPROCESSORS_ONLN);

    memset(facts, 0, sizeof(*facts));
    weft_machine_read(&facts->machine);
    facts->pid = (uint64_t)getpid();
    facts->memory_total = weft_machine_meminfo("MemTotal:") * 1024;
    facts->huge_free = weft_machine_meminfo("HugePages_Free:") * weft_machine_meminfo("Hugepagesize:") * 1024;
    facts->lock_limit = soft_limit(RLIMIT_MEMLOCK);
    facts->file_limit = soft_limit(RLIMIT_NOFILE);
    facts->shm_size = shm_size();
    facts->slow_start_after_idle = read_sysctl("/proc/sys/net/ipv4/tcp_slow_start_after_idle");
    facts->cpu_count = online > 0 ? (uint32_t)online : 1;
    facts->numa_count = count_numa_nodes();
    read_huge_mode(facts->huge_mode, sizeof(facts->huge_mode));
    read_cpu_model(facts->cpu_model, sizeof(facts->cpu_model));
    snprintf(facts->version, sizeof(facts->version), "%s", weft_version());
}

void weft_doctor_facts_read(const struct weft_bootstrap *bootstrap, const char *model,
                            struct weft_doctor_facts *facts_out)
{
    weft_doctor_facts_read_machine(facts_out);
    facts_out->host_id = weft_bootstrap_host_id(bootstrap);
    facts_out->has_binary = digest_binary(facts_out->binary);
    read_cpu_level(facts_out->cpu_level, sizeof(facts_out->cpu_level));
    if (model != NULL) {
        read_model(model, facts_out);
    }
}
