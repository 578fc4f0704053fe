/* When the leader believes that the network between two hosts is cut. Contract in heart_mesh.h. */
#include <stdio.h>

#include "heart_mesh.h"

static const struct heart_beat *beat_of(const struct heart_view *view, uint32_t rank)
{
    return rank == 0 ? view->own : &view->links[rank - 1].last;
}

/* Whom `rank` does not reach, as it says. */
static uint32_t cut_of(const struct heart_view *view, uint32_t rank)
{
    return rank == 0 || view->links[rank - 1].has_spoken ? beat_of(view, rank)->cut_rank : HEART_NOBODY;
}

static bool is_heard_since(const struct heart_view *view, uint32_t rank, int64_t since)
{
    return rank == 0 || (view->links[rank - 1].fd >= 0 && view->links[rank - 1].heard_ns > since);
}

/* Whether `reporter` has told for an interval of a cut link, and both ends are there. */
static bool is_believed(const struct heart_view *view, uint32_t reporter, int64_t now)
{
    int64_t *since = reporter == 0 ? view->own_cut_ns : &view->links[reporter - 1].cut_ns;
    uint32_t peer = cut_of(view, reporter);

    if (peer > view->link_count || peer == reporter) { /* nobody */
        *since = 0;
        return false;
    }
    if (*since == 0) {
        *since = now;
    }
    return now - *since >= view->interval_ns && is_heard_since(view, reporter, *since) &&
           is_heard_since(view, peer, *since);
}

/* Links that `rank` has lost: as it says, or as others say of it, where packets vanish one way only. */
static uint32_t lost_count(const struct heart_view *view, uint32_t rank)
{
    uint32_t count = 0;

    for (uint32_t other = 0; other <= view->link_count; other++) {
        count += other != rank && cut_of(view, other) == rank;
    }
    return count > beat_of(view, rank)->cut_count ? count : beat_of(view, rank)->cut_count;
}

static uint32_t choose_victim(const struct heart_view *view, uint32_t a, uint32_t b)
{
    uint32_t lost_a = lost_count(view, a);
    uint32_t lost_b = lost_count(view, b);

    return lost_a > lost_b || (lost_a == lost_b && a > b) ? a : b;
}

bool weft_heart_mesh_is_cut(const struct heart_view *view, int64_t now, uint32_t *rank_out, char *reason_out,
                            size_t reason_size)
{
    for (uint32_t reporter = 0; reporter <= view->link_count; reporter++) {
        const struct heart_beat *beat = beat_of(view, reporter);
        uint32_t victim, other;
        bool is_ours;

        if (!is_believed(view, reporter, now)) {
            continue;
        }
        victim = choose_victim(view, reporter, beat->cut_rank);
        other = victim == reporter ? beat->cut_rank : reporter;
        *rank_out = victim;
        is_ours = victim == 0 || other == 0;
        (void)snprintf(
            reason_out, reason_size,
            "no answer between it and rank %u on %s for %.1f s though %s: the network%s between %s and %s is "
            "cut",
            other, beat_of(view, other)->host, beat->cut_ms / 1e3,
            is_ours ? "heartbeats arrive" : "both answer the leader", is_ours ? " of the data" : "",
            beat_of(view, victim)->host, beat_of(view, other)->host);
        return true;
    }
    return false;
}
