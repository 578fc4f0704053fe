/* What a rank owns, from its leaves: heads, FFN columns and vocabulary rows dealt along the canonical tree. */
#include "model/slice.h"

/* n units of `size` items each, dealt to leaves; the last unit may be short. */
static struct weft_range deal(uint32_t item_count, uint32_t size, uint32_t leaf_count, struct weft_range leaves)
{
    uint32_t unit_count = item_count / size + (item_count % size != 0);
    struct weft_range range = weft_tree_units(unit_count, leaf_count, leaves);

    range.begin = range.begin * size < item_count ? range.begin * size : item_count;
    range.end = range.end * size < item_count ? range.end * size : item_count;
    return range;
}

struct weft_range weft_slice_heads(const struct weft_model_config *config, uint32_t leaf_count,
                                   struct weft_range leaves)
{
    return deal(config->head_count, 1, leaf_count, leaves);
}

struct weft_range weft_slice_ffn(const struct weft_model_config *config, uint32_t leaf_count, struct weft_range leaves)
{
    return deal(config->ffn_width, WEFT_SLICE_FFN_BLOCK, leaf_count, leaves);
}

struct weft_range weft_slice_vocab(const struct weft_model_config *config, uint32_t leaf_count,
                                   struct weft_range leaves)
{
    return deal(config->vocab_size, WEFT_SLICE_VOCAB_PANEL, leaf_count, leaves);
}

void weft_slice_init(const struct weft_model_config *config, uint32_t leaf_count, struct weft_range leaves,
                     struct weft_slice *slice_out)
{
    uint32_t group_size = config->head_count / config->kv_head_count;

    *slice_out = (struct weft_slice){
        .leaf_count = leaf_count,
        .leaves = leaves,
        .heads = weft_slice_heads(config, leaf_count, leaves),
        .ffn = weft_slice_ffn(config, leaf_count, leaves),
        .vocab = weft_slice_vocab(config, leaf_count, leaves),
    };
    if (weft_range_count(slice_out->heads) > 0) {
        slice_out->kv_heads.begin = slice_out->heads.begin / group_size;
        slice_out->kv_heads.end = (slice_out->heads.end - 1) / group_size + 1;
    }
}
