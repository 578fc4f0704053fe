/* Which matrices --quantize changes, and into what. */
#include "model/quantise.h"

#include <stdio.h>
#include <string.h>

static const char *const names[] = {[WEFT_QUANTISE_NONE] = "none",
                                    [WEFT_QUANTISE_Q8_0] = "q8_0",
                                    [WEFT_QUANTISE_Q4_0] = "q4_0",
                                    [WEFT_QUANTISE_BF16] = "bf16"};
enum { NAME_COUNT = sizeof(names) / sizeof(names[0]) };

const char *weft_quantise_name(enum weft_quantise quantise)
{
    return (unsigned)quantise < NAME_COUNT ? names[quantise] : "unknown";
}

int weft_quantise_parse(const char *text, enum weft_quantise *out)
{
    for (int i = 0; i < NAME_COUNT; i++) {
        if (strcmp(text == NULL ? "none" : text, names[i]) == 0) {
            *out = (enum weft_quantise)i;
            return 0;
        }
    }
    return -1;
}

enum weft_dtype weft_quantise_layer(enum weft_quantise quantise, enum weft_dtype stored)
{
    switch (quantise) {
    case WEFT_QUANTISE_Q8_0: return WEFT_Q8_0;
    case WEFT_QUANTISE_Q4_0: return WEFT_Q4_0;
    case WEFT_QUANTISE_BF16: return stored == WEFT_F8_E4M3 ? WEFT_BF16 : stored;
    case WEFT_QUANTISE_NONE: break;
    }
    return stored;
}

enum weft_dtype weft_quantise_end(enum weft_quantise quantise, enum weft_dtype stored)
{
    return weft_quantise_layer(quantise == WEFT_QUANTISE_Q4_0 ? WEFT_QUANTISE_Q8_0 : quantise, stored);
}

enum weft_dtype weft_quantise_source(const struct weft_model_config *config, enum weft_dtype stored)
{
    bool is_quantised = config->quantise == WEFT_QUANTISE_Q8_0 || config->quantise == WEFT_QUANTISE_Q4_0;
    /* bf16 may be FP8 and bf16 side by side: f32 holds both exactly. */
    bool is_fp8 = config->fp8.is_there && (stored == WEFT_F8_E4M3 || stored == WEFT_BF16);

    return is_quantised && is_fp8 ? WEFT_F32 : is_quantised ? stored : weft_quantise_layer(config->quantise, stored);
}

const char *weft_weights_text(const struct weft_model_config *config, char *text)
{
    enum weft_dtype kept = weft_quantise_layer(config->quantise, config->dtype);
    const char *ends = config->quantise == WEFT_QUANTISE_Q4_0 ? " (embedding and head q8_0)" : "";

    if (kept == config->dtype) {
        snprintf(text, WEFT_WEIGHTS_TEXT_SIZE, "%s", weft_dtype_name(kept));
    } else {
        snprintf(text, WEFT_WEIGHTS_TEXT_SIZE, "%s%s, %s while loading, from %s", weft_dtype_name(kept), ends,
                 weft_dtype_is_quantised(kept) ? "quantised" : "converted", weft_dtype_name(config->dtype));
    }
    return text;
}
