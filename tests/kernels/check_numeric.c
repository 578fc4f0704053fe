/* weft/numeric.h against double precision and against itself. */
#include <math.h>

#include "check.h"
#include "weft/numeric.h"

/* Odd strides meet every exponent and most patterns of low bits. */
enum { STRIDE = 40503 };

/* One unit in the last place of the f32 nearest to `exact`. */
static double ulp(double exact)
{
    return fabs(exact) < 0x1p-126 ? CHECK_TINY : ldexp(1.0, ilogb(exact) - 23);
}

static void check_exp(struct check *check)
{
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += STRIDE) {
        float x = weft_f32_from_bits((uint32_t)bits);
        float y = weft_exp(x);

        if (isnan(x)) {
            check_same(check, &y, &x, 1, "exp(NaN)");
        } else if (x > 88.73f) {
            check_same(check, &y, &(float){INFINITY}, 1, "exp(%a)", (double)x);
        } else if (x < -103.98f) {
            check_same(check, &y, &(float){0.0f}, 1, "exp(%a)", (double)x);
        } else if (x < 88.72f) {
            check_near(check, y, exp((double)x), 1.01 * ulp(exp((double)x)), "exp(%a)", (double)x);
        }
    }
    check_same(check, &(float){weft_exp(0.0f)}, &(float){1.0f}, 1, "exp(0)");
    check_same(check, &(float){weft_exp(-INFINITY)}, &(float){0.0f}, 1, "exp(-inf)");
    check_same(check, &(float){weft_exp(INFINITY)}, &(float){INFINITY}, 1, "exp(inf)");
}

/* Every 16-bit number survives the way to f32 and back. */
static void check_round_trips(struct check *check)
{
    for (uint32_t i = 0; i <= UINT16_MAX; i++) {
        float half = weft_f16_to_f32((uint16_t)i);
        float brain = weft_bf16_to_f32((uint16_t)i);
        uint32_t exponent = i >> 10 & 31;
        double exact = exponent == 0 ? ldexp(i & 1023, -24) : ldexp(1024 + (i & 1023), (int)exponent - 25);

        if (exponent == 31) {
            exact = (i & 1023) != 0 ? NAN : INFINITY;
        }
        check_same(check, &half, &(float){(float)((i & 0x8000U) != 0 ? -exact : exact)}, 1, "f16 %04x", i);
        if (!isnan(half) && weft_f32_to_f16(half) != i) {
            check_fail(check, "f16 %04x comes back as %04x", i, weft_f32_to_f16(half));
        }
        if (!isnan(brain) && weft_f32_to_bf16(brain) != i) {
            check_fail(check, "bf16 %04x comes back as %04x", i, weft_f32_to_bf16(brain));
        }
    }
}

/* y is the 16-bit float nearest to x, ties to even: no neighbour is nearer. */
static void check_nearest(struct check *check, float x, uint16_t y, float (*widen)(uint16_t), const char *what)
{
    double error = fabs((double)widen(y) - (double)x);

    if (isnan(x) || isinf(widen(y))) {
        if (isnan(x) != isnan(widen(y))) {
            check_fail(check, "%s(%a) is %04x", what, (double)x, y);
        }
        return;
    }
    check->compared_count++;
    for (int step = -1; step <= 1; step += 2) {
        uint16_t neighbour = (uint16_t)(y + step);
        double other = fabs((double)widen(neighbour) - (double)x);

        if ((y & 0x7fffU) == 0 || isnan(widen(neighbour))) {
            continue; /* the neighbours of zero differ in sign; covered by the round trip */
        }
        if (other < error || (other == error && y % 2 != 0)) {
            check_fail(check, "%s(%a) is %04x, %04x is nearer", what, (double)x, y, neighbour);
        }
    }
}

static void check_rounding(struct check *check)
{
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += STRIDE) {
        float x = weft_f32_from_bits((uint32_t)bits);

        check_nearest(check, x, weft_f32_to_f16(x), weft_f16_to_f32, "f16");
        check_nearest(check, x, weft_f32_to_bf16(x), weft_bf16_to_f32, "bf16");
    }
    check_same(check, &(float){weft_f16_to_f32(weft_f32_to_f16(65519.0f))}, &(float){65504.0f}, 1, "f16 largest");
    check_same(check, &(float){weft_f16_to_f32(weft_f32_to_f16(65520.0f))}, &(float){INFINITY}, 1, "f16 overflow");
    check_same(check, &(float){weft_bf16_to_f32(weft_f32_to_bf16(0x1.fffffep+127f))}, &(float){INFINITY}, 1,
               "bf16 overflow");
}

void check_numeric(struct check *check)
{
    check_exp(check);
    check_round_trips(check);
    check_rounding(check);
}
