/* The rules about links. */
#include <math.h>
#include <stdio.h>

#include "doctor/findings.h"

static const double LATENCY_SLOW_US = 500;
static const double BANDWIDTH_SLOW = 100e6; /* bytes/s: less than a 1 Gbit/s network gives */
static const double CLOCK_SKEW_US = 100e3;
/* From this latency on, one more round trip is worth telling. */
static const double LATENCY_FAR_US = 50;
/* The other transport is worth telling from this on. */
static const double OTHER_IS_BETTER = 0.75;
/* Segments sent again during a measurement of some 3000. */
enum { RESENT_MANY = 3 };

static struct weft_doctor_finding at_link(const struct weft_doctor_group *group, const struct weft_doctor_link *link,
                                          enum weft_doctor_severity severity, const char *why, const char *change)
{
    struct weft_doctor_finding finding = {.severity = severity, .why = why, .change = change};

    snprintf(finding.where, sizeof(finding.where), "rank %u - rank %u (%.24s - %.24s)", link->a, link->b,
             group->facts[link->a].machine.host_name, group->facts[link->b].machine.host_name);
    return finding;
}

static void judge_speed(const struct weft_doctor_group *group, const struct weft_doctor_link *link,
                        struct weft_doctor_findings *findings)
{
    if (link->latency_us > LATENCY_SLOW_US) {
        struct weft_doctor_finding finding =
            at_link(group, link, WEFT_DOCTOR_WARNING, "every layer waits for two exchanges per token",
                    "another network with --interface, or hosts that are nearer; look for load on the hosts");
        weft_doctor_findings_add(findings, &finding, "slow link: a message takes %.0f us", link->latency_us);
    }
    if (link->bandwidth > 0 && link->bandwidth < BANDWIDTH_SLOW) {
        struct weft_doctor_finding finding =
            at_link(group, link, WEFT_DOCTOR_WARNING, "long prompts send megabytes per layer",
                    "another network with --interface; check link speed, MTU and what else uses it");
        weft_doctor_findings_add(findings, &finding, "slow link: %.1f MB/s", link->bandwidth / 1e6);
    }
    if (link->resent_count >= RESENT_MANY) {
        struct weft_doctor_finding finding =
            at_link(group, link, WEFT_DOCTOR_WARNING, "each lost packet stops a sum for 200 ms or more",
                    "look for a bad cable, a full switch, or a duplex mismatch: ip -s link, ethtool -S");
        weft_doctor_findings_add(findings, &finding, "the network loses packets: %u segments were sent again",
                                 link->resent_count);
    }
    if (link->other[0] != '\0' && link->other_latency_us < OTHER_IS_BETTER * link->latency_us) {
        struct weft_doctor_finding finding =
            at_link(group, link, WEFT_DOCTOR_NOTE, "small messages decide how fast tokens come",
                    "try a run with --comm and the other transport");
        weft_doctor_findings_add(findings, &finding, "%s takes %.0f us for a message, the chosen transport %.0f",
                                 link->other, link->other_latency_us, link->latency_us);
    }
}

static void judge_mtu(const struct weft_doctor_group *group, const struct weft_doctor_link *link,
                      struct weft_doctor_findings *findings)
{
    bool is_ab = weft_doctor_mtu_is_black_hole(&link->mtu_ab), is_ba = weft_doctor_mtu_is_black_hole(&link->mtu_ba);
    const struct weft_doctor_mtu *mtu = is_ab || !is_ba ? &link->mtu_ab : &link->mtu_ba;
    uint32_t from = is_ab || !is_ba ? link->a : link->b;

    if (is_ab || is_ba) {
        struct weft_doctor_finding finding =
            at_link(group, link, WEFT_DOCTOR_ERROR,
                    "small messages work but the first large one never arrives: a run would hang until its timeout",
                    "ip link set dev INTERFACE mtu N on both hosts, with INTERFACE and N from here; or let ICMP "
                    "\"fragmentation needed\" through the firewall");
        weft_doctor_findings_add(
            findings, &finding, "packets from %.24s%s larger than %u bytes vanish on the way, its interface %s says %u",
            group->facts[from].machine.host_name, is_ab && is_ba ? " and back" : "", mtu->path_mtu, mtu->interface,
            mtu->interface_mtu);
    } else if (link->mtu_ab.announced > 0 || link->mtu_ba.announced > 0) {
        struct weft_doctor_finding finding =
            at_link(group, link, WEFT_DOCTOR_NOTE, "it works, with a delay now and then",
                    "set that MTU on the interfaces of both hosts");
        mtu = link->mtu_ab.announced > 0 ? &link->mtu_ab : &link->mtu_ba;
        weft_doctor_findings_add(findings, &finding, "the way takes packets of %u bytes, interface %s has %u",
                                 mtu->path_mtu, mtu->interface, mtu->interface_mtu);
    }
}

static void judge_clock(const struct weft_doctor_group *group, const struct weft_doctor_link *link,
                        struct weft_doctor_findings *findings)
{
    if (fabs(link->clock_offset_us) - link->clock_error_us > CLOCK_SKEW_US) {
        struct weft_doctor_finding finding =
            at_link(group, link, WEFT_DOCTOR_WARNING,
                    "log lines of the hosts cannot be put in order; certificates may seem invalid",
                    "run chrony or another NTP client on both hosts");
        weft_doctor_findings_add(findings, &finding, "clocks differ by %.3f s", link->clock_offset_us / 1e6);
    }
}

static void judge_link(const struct weft_doctor_group *group, const struct weft_doctor_link *link,
                       struct weft_doctor_findings *findings)
{
    /* Inside a host a slow answer means busy cores, which the rules about cores are for. */
    if (!link->is_measured || link->is_same_host) {
        return;
    }
    judge_speed(group, link, findings);
    judge_mtu(group, link, findings);
    judge_clock(group, link, findings);
}

/* A sum after a pause is a burst: hosts whose kernel begins small again make it wait. */
static void judge_idle_start(const struct weft_doctor_group *group, struct weft_doctor_findings *findings)
{
    struct weft_doctor_finding finding = {
        .severity = WEFT_DOCTOR_NOTE,
        .why = "after 0.2 s without traffic a message above 14 KB waits for one more round trip",
        .change = "sysctl -w net.ipv4.tcp_slow_start_after_idle=0 on every host"};
    bool is_far = false;
    uint32_t slow = group->rank_count;

    for (uint32_t i = 0; i < group->link_count; i++) {
        const struct weft_doctor_link *link = &group->links[i];

        is_far = is_far || (link->is_measured && !link->is_same_host && link->mtu_ab.interface[0] != '\0' &&
                            link->latency_us > LATENCY_FAR_US);
    }
    for (uint32_t r = group->rank_count; r-- > 0;) {
        slow = group->facts[r].slow_start_after_idle == 1 ? r : slow;
    }
    if (is_far && slow < group->rank_count) {
        snprintf(finding.where, sizeof(finding.where), "host %s", group->facts[slow].machine.host_name);
        weft_doctor_findings_add(findings, &finding,
                                 "the kernel forgets how much a TCP connection may carry when it has been idle");
    }
}

void weft_doctor_judge_links(const struct weft_doctor_group *group, struct weft_doctor_findings *findings)
{
    uint32_t missed = 0;

    for (uint32_t i = 0; i < group->link_count; i++) {
        judge_link(group, &group->links[i], findings);
        missed += !group->links[i].is_measured;
    }
    judge_idle_start(group, findings);
    if (missed > 0) {
        struct weft_doctor_finding finding = {.severity = WEFT_DOCTOR_NOTE,
                                              .where = "links",
                                              .why = "measuring ended early",
                                              .change = "fewer ranks, or look at the slow links above first"};
        weft_doctor_findings_add(findings, &finding, "%u of %u pairs not measured", missed, group->link_count);
    }
}
