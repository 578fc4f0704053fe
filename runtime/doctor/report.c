/* The report for people. */
#include <inttypes.h>
#include <string.h>

#include "doctor/doctor.h"

const char *weft_doctor_severity_name(enum weft_doctor_severity severity)
{
    static const char *const names[] = {"note", "warning", "error"};

    return names[severity];
}

const char *weft_doctor_link_transport(const struct weft_doctor_report *report, const struct weft_doctor_link *link,
                                       char text[16])
{
    const char *plus = strchr(report->transport, '+');

    if (plus != NULL && link->is_same_host) {
        snprintf(text, 16, "%.*s", (int)(plus - report->transport), report->transport);
    } else {
        snprintf(text, 16, "%.15s", plus != NULL ? plus + 1 : report->transport);
    }
    return text;
}

static const char *limit_text(uint64_t limit, uint64_t unit, const char *name, char *text, size_t size)
{
    if (limit == UINT64_MAX) {
        snprintf(text, size, "none");
    } else {
        snprintf(text, size, "%" PRIu64 "%s", limit / unit, name);
    }
    return text;
}

static void print_rank(const struct weft_doctor_report *report, uint32_t rank, FILE *file)
{
    const struct weft_doctor_facts *facts = &report->facts[rank];
    uint32_t cores = weft_doctor_core_count(&facts->machine);
    uint32_t usable =
        facts->machine.cpu_quota > 0 && facts->machine.cpu_quota < cores ? facts->machine.cpu_quota : cores;
    char binding[24], lock[24], files[24], count[16], memory[32], model[16];

    snprintf(binding, sizeof(binding), "none");
    if (cores < facts->cpu_count) {
        (void)weft_doctor_cores_text(&facts->machine, binding, sizeof(binding));
    }
    snprintf(count, sizeof(count), "%u/%u", usable, facts->cpu_count);
    snprintf(memory, sizeof(memory), "%.1f/%.1f", (double)facts->machine.memory_available / 1073741824.0,
             (double)facts->memory_total / 1073741824.0);
    snprintf(model, sizeof(model), "%s", facts->has_model ? "unreadable" : "-");
    if (facts->has_model && facts->model_status == WEFT_OK) {
        snprintf(model, sizeof(model), "%02x%02x%02x%02x", facts->model[0], facts->model[1], facts->model[2],
                 facts->model[3]);
    }
    fprintf(file, "%4u  %-16.16s %7" PRIu64 "  %-7s %4u  %-11s %-8s %-7s %-8s %-8s %-8s %-7s %02x%02x%02x%02x  %s\n",
            rank, facts->machine.host_name, facts->pid, count, facts->numa_count, memory, facts->huge_mode,
            facts->cpu_level, binding, limit_text(facts->lock_limit, 1048576, "MiB", lock, sizeof(lock)),
            limit_text(facts->file_limit, 1, "", files, sizeof(files)), facts->version, facts->binary[0],
            facts->binary[1], facts->binary[2], facts->binary[3], model);
}

static void print_ranks(const struct weft_doctor_report *report, FILE *file)
{
    fprintf(file, "%4s  %-16s %7s  %-7s %4s  %-11s %-8s %-7s %-8s %-8s %-8s %-7s %-8s  %s\n", "rank", "host", "pid",
            "cores", "NUMA", "free/GiB", "huge", "CPU", "bound to", "memlock", "files", "weft", "binary", "model");
    for (uint32_t r = 0; r < report->rank_count; r++) {
        print_rank(report, r, file);
    }
}

static void print_gpus(const struct weft_doctor_report *report, FILE *file)
{
    if (report->gpus[0] == WEFT_NO_GPU) {
        const char *reason = report->facts[0].member.no_gpu_reason;
        fprintf(file, "\nGPUs       none used%s%s\n", reason[0] != '\0' ? ": " : "", reason);
        return;
    }
    fprintf(file, "\n%4s  %3s  %-32s %s\n", "rank", "GPU", "name", "free/GiB");
    for (uint32_t r = 0; r < report->rank_count; r++) {
        const struct weft_member_gpu *gpu = &report->facts[r].member.gpus[report->gpus[r]];
        fprintf(file, "%4u  %3d  %-32.32s %.1f/%.1f\n", r, report->gpus[r], gpu->name,
                (double)gpu->memory_free / 1073741824.0, (double)gpu->memory_total / 1073741824.0);
    }
    const struct weft_doctor_facts *facts = &report->facts[0];
    bool has_library = facts->fast_library[0] != '\0';
    fprintf(file, "fast numerics on rank 0: %s%s\n",
            has_library ? facts->fast_library : "no cuBLASLt, --numerics fast is as exact: ",
            has_library ? "" : facts->fast_reason);
}

/* What is the same for all ranks of a host, once per host. */
static void print_hosts(const struct weft_doctor_report *report, FILE *file)
{
    fprintf(file, "\n%-16s  %-8s  %s\n", "host", "/dev/shm", "CPU");
    for (uint32_t r = 0; r < report->rank_count; r++) {
        const struct weft_doctor_facts *facts = &report->facts[r];
        bool is_first = true;

        for (uint32_t e = 0; e < r; e++) {
            is_first = is_first && report->facts[e].host_id != facts->host_id;
        }
        if (is_first) {
            fprintf(file, "%-16.16s  %5.1f GB  %s\n", facts->machine.host_name, (double)facts->shm_size / 1e9,
                    facts->cpu_model);
        }
    }
}

/* "eth0 1500", or the largest that passed when that is less: "eth0 1500 (1400)". */
static const char *mtu_text(const struct weft_doctor_link *link, char *text, size_t size)
{
    uint32_t least = link->mtu_ab.path_mtu;

    snprintf(text, size, "-");
    if (link->mtu_ab.interface[0] == '\0') {
        return text;
    }
    least = link->mtu_ba.path_mtu != 0 && link->mtu_ba.path_mtu < least ? link->mtu_ba.path_mtu : least;
    if (least != 0 && least < link->mtu_ab.interface_mtu) {
        snprintf(text, size, "%s %u (%u)", link->mtu_ab.interface, link->mtu_ab.interface_mtu, least);
    } else {
        snprintf(text, size, "%s %u", link->mtu_ab.interface, link->mtu_ab.interface_mtu);
    }
    return text;
}

static void print_link(const struct weft_doctor_report *report, const struct weft_doctor_link *link, FILE *file)
{
    char pair[24], text[16], mtu[48], bandwidth[24];

    snprintf(pair, sizeof(pair), "%u - %u", link->a, link->b);
    fprintf(file, "%9s  %-9s ", pair, weft_doctor_link_transport(report, link, text));
    if (!link->is_measured) {
        fprintf(file, "%12s\n", "not measured");
        return;
    }
    snprintf(bandwidth, sizeof(bandwidth), "%.1f MB/s", link->bandwidth / 1e6);
    fprintf(file, "%9.1f us %14s  %-16s ", link->latency_us, link->bandwidth > 0 ? bandwidth : "not measured",
            mtu_text(link, mtu, sizeof(mtu)));
    if (link->is_same_host) {
        fputs("the same\n", file);
        return;
    }
    fprintf(file, "%+.3f ms (+- %.3f)", link->clock_offset_us / 1e3, link->clock_error_us / 1e3);
    if (link->other[0] != '\0') {
        fprintf(file, "  %s: %.1f us %.1f MB/s", link->other, link->other_latency_us, link->other_bandwidth / 1e6);
    }
    fputc('\n', file);
}

static void print_links(const struct weft_doctor_report *report, FILE *file)
{
    if (report->transport[0] != '\0') {
        fprintf(file, "\ntransport  %s: %s\n", report->transport, report->reason);
    }
    if (report->link_count > 0) {
        fprintf(file, "\n%9s  %-9s %12s %14s  %-16s %s\n", "ranks", "transport", "latency", "bandwidth",
                "interface, MTU", "clock");
    }
    for (uint32_t i = 0; i < report->link_count; i++) {
        print_link(report, &report->links[i], file);
    }
    fputc('\n', file);
}

static void print_prediction(const struct weft_doctor_report *report, FILE *file)
{
    const struct weft_doctor_prediction *prediction = &report->prediction;
    const struct weft_doctor_rates *rates = &report->rates;
    uint32_t slowest = prediction->slowest_rank;

    if (!prediction->is_known) {
        return;
    }
    fprintf(file,
            "expected   %.1f tokens/s for one request on %s alone (%u threads): %.2f GB of weights per token at %.1f "
            "GB/s\n",
            prediction->alone_tokens_per_s, report->facts[0].machine.host_name, rates->alone_thread_count,
            prediction->weight_size / 1e9, rates->alone_speed / 1e9);
    if (report->rank_count > 1) {
        fprintf(
            file,
            "expected   %.1f tokens/s with these %u ranks: %.1f ms reading (rank %u, %u threads, %.1f GB/s) + %.1f ms "
            "for %u exchanges of %.0f us\n",
            prediction->tokens_per_s, report->rank_count, prediction->read_ms, slowest, rates->thread_counts[slowest],
            rates->speeds[slowest] / 1e9, prediction->exchange_ms, prediction->exchange_count, rates->sum_us);
    }
    fputc('\n', file);
}

static bool is_same(const struct weft_doctor_finding *a, const struct weft_doctor_finding *b)
{
    return a->severity == b->severity && strcmp(a->what, b->what) == 0 && strcmp(a->change, b->change) == 0;
}

/* One line for all that have the same fault; the first of them is named. */
static void print_finding(const struct weft_doctor_findings *findings, uint32_t index, FILE *file)
{
    const struct weft_doctor_finding *finding = &findings->items[index];
    uint32_t more = 0;
    char others[24] = "";

    for (uint32_t i = 0; i < findings->count; i++) {
        if (is_same(&findings->items[i], finding)) {
            if (i < index) {
                return;
            }
            more += i > index;
        }
    }
    if (more > 0) {
        snprintf(others, sizeof(others), " and %u more", more);
    }
    fprintf(file, "%s: %s%s: %s; %s; change: %s\n", weft_doctor_severity_name(finding->severity), finding->where,
            others, finding->what, finding->why, finding->change);
}

static void print_findings(const struct weft_doctor_report *report, bool is_quiet, FILE *file)
{
    for (uint32_t i = 0; i < report->findings.count; i++) {
        if (!is_quiet || report->findings.items[i].severity != WEFT_DOCTOR_NOTE) {
            print_finding(&report->findings, i, file);
        }
    }
    if (report->findings.dropped > 0) {
        fprintf(file, "and %u more\n", report->findings.dropped);
    }
    if (!is_quiet && !weft_doctor_is_trouble(&report->findings)) {
        fputs("all well\n", file);
    }
}

/* Which rank is which, and who said so. */
static void print_placement(const struct weft_doctor_report *report, FILE *file)
{
    const struct weft_doctor_options *options = report->options;
    const char *leader = options->engine->leader;

    fprintf(file, "launcher   %s, ranks met by: %s\n", options->launcher, report->kind);
    fprintf(file, "ranks      %u from %s\n", report->rank_count, options->rank_count_origin);
    fprintf(file, "leader     %s from %s\n", leader != NULL ? leader : "this process", options->leader_origin);
    for (uint32_t r = 0; r < report->rank_count; r++) {
        const struct weft_doctor_facts *facts = &report->facts[r];

        if (strcmp(facts->rank_origin, "default") == 0) {
            continue; /* ranks forked here: nobody gave them numbers */
        }
        fprintf(file, "rank %-5u of %u from %s", r, report->rank_count, facts->rank_origin);
        if (facts->local_origin[0] != '\0') {
            fprintf(file, "; %u on %s from %s", facts->local_rank, facts->machine.host_name, facts->local_origin);
        }
        fputc('\n', file);
    }
    fputc('\n', file);
}

void weft_doctor_report_print(const struct weft_doctor_report *report, bool is_quiet, FILE *file)
{
    if (!is_quiet) {
        print_placement(report, file);
        print_ranks(report, file);
        print_hosts(report, file);
        print_gpus(report, file);
        print_links(report, file);
        print_prediction(report, file);
    }
    print_findings(report, is_quiet, file);
}
