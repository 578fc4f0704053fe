/* The report for programs. */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "doctor/doctor.h"

static json_t *limit_json(uint64_t limit)
{
    return limit == UINT64_MAX ? json_null() : json_integer((json_int_t)limit);
}

static json_t *digest_json(bool is_known, const uint8_t *digest)
{
    char text[2 * WEFT_SHA256_SIZE + 1];

    if (!is_known) {
        return json_null();
    }
    weft_sha256_text(digest, text);
    return json_string(text);
}

static json_t *gpu_json(const struct weft_doctor_report *report, uint32_t rank)
{
    if (report->gpus[rank] == WEFT_NO_GPU) {
        return json_null();
    }
    const struct weft_member_gpu *gpu = &report->facts[rank].member.gpus[report->gpus[rank]];
    const struct weft_doctor_facts *facts = &report->facts[rank];
    bool has_library = facts->fast_library[0] != '\0';
    return json_pack("{s:i, s:s, s:I, s:I, s:o, s:o}", "index", (int)report->gpus[rank], "name", gpu->name,
                     "memory_free_bytes", (json_int_t)gpu->memory_free, "memory_total_bytes",
                     (json_int_t)gpu->memory_total, "fast_library",
                     has_library ? json_string(facts->fast_library) : json_null(), "no_fast_library_because",
                     has_library ? json_null() : json_string(facts->fast_reason));
}

/* Adds where the rank's numbers came from. */
static json_t *with_origins(json_t *object, const struct weft_doctor_facts *facts)
{
    bool has_local = facts->local_origin[0] != '\0';

    json_object_set_new(object, "rank_from", json_string(facts->rank_origin));
    json_object_set_new(object, "local_rank", has_local ? json_integer(facts->local_rank) : json_null());
    json_object_set_new(object, "local_rank_from", has_local ? json_string(facts->local_origin) : json_null());
    return object;
}

static json_t *rank_json(const struct weft_doctor_report *report, uint32_t rank)
{
    const struct weft_doctor_facts *facts = &report->facts[rank];
    bool has_model = facts->has_model && facts->model_status == WEFT_OK;
    char cores[256];

    return json_pack("{s:i, s:s, s:I, s:s, s:i, s:i, s:i, s:i, s:I, s:I, s:s, s:I, s:s, s:o, s:o, s:s, s:o, s:o, s:o, "
                     "s:o, s:s, s:I, s:i}",
                     "rank", (int)rank, "host", facts->machine.host_name, "pid", (json_int_t)facts->pid, "cores",
                     weft_doctor_cores_text(&facts->machine, cores, sizeof(cores)), "core_count",
                     (int)weft_doctor_core_count(&facts->machine), "core_quota", (int)facts->machine.cpu_quota,
                     "host_core_count", (int)facts->cpu_count, "numa_node_count", (int)facts->numa_count,
                     "memory_available_bytes", (json_int_t)facts->machine.memory_available, "memory_total_bytes",
                     (json_int_t)facts->memory_total, "huge_pages", facts->huge_mode, "huge_pages_free_bytes",
                     (json_int_t)facts->huge_free, "cpu_level", facts->cpu_level, "memlock_bytes",
                     limit_json(facts->lock_limit), "open_files", limit_json(facts->file_limit), "version",
                     facts->version, "binary_sha256", digest_json(facts->has_binary, facts->binary), "model_sha256",
                     digest_json(has_model, facts->model), "memory_needed_bytes",
                     report->memory_needs != NULL ? json_integer((json_int_t)report->memory_needs[rank]) : json_null(),
                     "gpu", gpu_json(report, rank), "cpu_model", facts->cpu_model, "shm_bytes",
                     (json_int_t)facts->shm_size, "tcp_slow_start_after_idle", (int)facts->slow_start_after_idle);
}

/* From the first rank of a pair to the second, or back; null where the transport knows no interface. */
static json_t *mtu_json(const struct weft_doctor_mtu *mtu)
{
    if (mtu->interface[0] == '\0') {
        return json_null();
    }
    return json_pack("{s:s, s:i, s:o, s:b}", "interface", mtu->interface, "interface_mtu", (int)mtu->interface_mtu,
                     "path_mtu", mtu->path_mtu > 0 ? json_integer((json_int_t)mtu->path_mtu) : json_null(),
                     "large_packets_vanish", (int)weft_doctor_mtu_is_black_hole(mtu));
}

static json_t *link_json(const struct weft_doctor_report *report, const struct weft_doctor_link *link)
{
    char text[16];
    json_t *object = json_pack("{s:[ii], s:s, s:b}", "ranks", (int)link->a, (int)link->b, "transport",
                               weft_doctor_link_transport(report, link, text), "same_host", (int)link->is_same_host);

    if (link->is_measured) {
        json_object_set_new(object, "latency_us", json_real(link->latency_us));
        json_object_set_new(object, "bandwidth_bytes_per_s",
                            link->bandwidth > 0 ? json_real(link->bandwidth) : json_null());
        json_object_set_new(object, "clock_offset_us", json_real(link->is_same_host ? 0 : link->clock_offset_us));
        json_object_set_new(object, "clock_error_us", json_real(link->is_same_host ? 0 : link->clock_error_us));
        json_object_set_new(object, "mtu", json_pack("[oo]", mtu_json(&link->mtu_ab), mtu_json(&link->mtu_ba)));
        json_object_set_new(object, "resent_segments", json_integer((json_int_t)link->resent_count));
    }
    if (link->other[0] != '\0') {
        json_object_set_new(object, "other",
                            json_pack("{s:s, s:f, s:f}", "transport", link->other, "latency_us", link->other_latency_us,
                                      "bandwidth_bytes_per_s", link->other_bandwidth));
    }
    return object;
}

static json_t *prediction_json(const struct weft_doctor_report *report)
{
    const struct weft_doctor_prediction *prediction = &report->prediction;

    if (!prediction->is_known) {
        return json_null();
    }
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:i, s:f, s:i, s:f}", "tokens_per_s", prediction->tokens_per_s,
                     "alone_tokens_per_s", prediction->alone_tokens_per_s, "weight_bytes_per_token",
                     prediction->weight_size, "alone_weight_bytes_per_s", report->rates.alone_speed, "read_ms",
                     prediction->read_ms, "slowest_rank", (int)prediction->slowest_rank, "exchange_ms",
                     prediction->exchange_ms, "exchanges_per_token", (int)prediction->exchange_count, "exchange_us",
                     report->rates.sum_us);
}

static json_t *finding_json(const struct weft_doctor_finding *finding)
{
    return json_pack("{s:s, s:s, s:s, s:s, s:s}", "severity", weft_doctor_severity_name(finding->severity), "where",
                     finding->where, "what", finding->what, "why", finding->why, "change", finding->change);
}

bool weft_doctor_report_print_json(const struct weft_doctor_report *report, FILE *file)
{
    const struct weft_doctor_options *options = report->options;
    json_t *ranks = json_array();
    json_t *links = json_array();
    json_t *findings = json_array();
    bool is_whole = true;
    json_t *object;
    char *line;

    for (uint32_t r = 0; r < report->rank_count; r++) {
        is_whole = json_array_append_new(ranks, with_origins(rank_json(report, r), &report->facts[r])) == 0 && is_whole;
    }
    for (uint32_t i = 0; i < report->link_count; i++) {
        is_whole = json_array_append_new(links, link_json(report, &report->links[i])) == 0 && is_whole;
    }
    for (uint32_t i = 0; i < report->findings.count; i++) {
        is_whole = json_array_append_new(findings, finding_json(&report->findings.items[i])) == 0 && is_whole;
    }
    object = json_pack("{s:b, s:s, s:s, s:s, s:s, s:s?, s:{s:s, s:s, s:s}, s:o, s:o, s:o, s:o}", "well",
                       (int)!weft_doctor_is_trouble(&report->findings), "launcher", options->launcher, "started_by",
                       report->kind, "transport", report->transport, "transport_reason", report->reason, "leader",
                       options->engine->leader, "origins", "rank", options->rank_origin, "rank_count",
                       options->rank_count_origin, "leader", options->leader_origin, "ranks", ranks, "links", links,
                       "findings", findings, "prediction", prediction_json(report));
    line = object != NULL && is_whole ? json_dumps(object, JSON_REAL_PRECISION(9)) : NULL;
    json_decref(object);
    if (line == NULL) {
        return false;
    }
    fprintf(file, "%s\n", line);
    free(line);
    return true;
}
