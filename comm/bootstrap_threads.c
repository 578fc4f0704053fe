/* Bootstraps inside one process: one rank alone, and ranks as threads (tests). */
#include <stdlib.h>

#include "bootstrap_star.h"
#include "weft/log.h"

enum weft_status weft_bootstrap_open_self(struct weft_bootstrap **out)
{
    return weft_star_open("self", 0, 1, out);
}

/* Rank 0's and `rank`'s ends of two new socket pairs. */
static enum weft_status join(struct weft_bootstrap *leader, struct weft_bootstrap *worker, uint32_t rank)
{
    int ours[STAR_CHANNEL_COUNT];
    int theirs[STAR_CHANNEL_COUNT];

    WEFT_TRY(weft_star_pairs(ours, theirs));
    if (weft_star_attach(leader, rank, ours) != WEFT_OK) {
        weft_star_close_all(theirs);
        return WEFT_ERR_IO;
    }
    return weft_star_attach(worker, 0, theirs);
}

enum weft_status weft_bootstrap_open_threads(uint32_t rank_count, struct weft_bootstrap **out)
{
    struct weft_bootstrap **ranks;
    enum weft_status status = WEFT_OK;

    if (rank_count == 0 || rank_count > STAR_RANK_MAX) {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "%u ranks: expected 1 to %u", rank_count, STAR_RANK_MAX);
        return WEFT_ERR_ARGUMENT;
    }
    ranks = calloc(rank_count, sizeof(struct weft_bootstrap *));
    if (ranks == NULL) {
        weft_log(WEFT_LOG_ERROR, STAR_LOG, "out of memory for %u ranks", rank_count);
        return WEFT_ERR_MEMORY;
    }
    for (uint32_t rank = 0; rank < rank_count && status == WEFT_OK; rank++) {
        status = weft_star_open("threads", rank, rank_count, &ranks[rank]);
        if (status == WEFT_OK && rank > 0) {
            status = join(ranks[0], ranks[rank], rank);
        }
    }
    for (uint32_t rank = 0; rank < rank_count; rank++) {
        if (status == WEFT_OK) {
            out[rank] = ranks[rank];
        } else if (ranks[rank] != NULL) {
            weft_star_free(ranks[rank]);
        }
    }
    free(ranks);
    return status;
}
