/* The cheap part of weft doctor, at every start. Contract in doctor.h. */
#include <stdlib.h>
#include <string.h>

#include "doctor/doctor.h"
#include "weft/log.h"

/* The ranks of a host have the same limits: once is enough. */
static bool is_told(const struct weft_doctor_findings *findings, uint32_t index)
{
    for (uint32_t i = 0; i < index; i++) {
        if (strcmp(findings->items[i].what, findings->items[index].what) == 0) {
            return true;
        }
    }
    return false;
}

void weft_doctor_check_start(const struct weft_engine_options *options, uint32_t local_count)
{
    uint32_t count = local_count > 0 && local_count <= WEFT_LEAF_COUNT_MAX ? local_count : 1;
    struct weft_doctor_facts *facts = calloc(count, sizeof(*facts));
    struct weft_doctor_findings *findings = calloc(1, sizeof(*findings));
    const struct weft_doctor_group group = {.facts = facts, .rank_count = count};

    if (facts != NULL && findings != NULL) {
        weft_doctor_facts_read_machine(&facts[0]);
        facts[0].thread_count = options->thread_count;
        for (uint32_t r = 1; r < count; r++) {
            facts[r] = facts[0];
        }
        weft_doctor_judge(&group, findings);
        for (uint32_t i = 0; i < findings->count; i++) {
            const struct weft_doctor_finding *finding = &findings->items[i];

            if (finding->severity != WEFT_DOCTOR_NOTE && !is_told(findings, i)) {
                weft_log(WEFT_LOG_WARN, "doctor", "%s: %s; %s; change: %s", facts[0].machine.host_name, finding->what,
                         finding->why, finding->change);
            }
        }
    }
    free(facts);
    free(findings);
}
