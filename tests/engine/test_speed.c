/* What is measured to deal leaves by speed: weights as the model's layers have them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine/speed.h"

static void expect_weights(enum weft_quantise quantise, enum weft_dtype stored, enum weft_dtype dtype,
                           uint32_t scale_cols)
{
    struct weft_speed_weights found = weft_speed_weights(quantise, stored, 128);

    assert_int_equal(found.dtype, dtype);
    assert_int_equal(found.scale_cols, scale_cols);
}

static void test_weights_of_a_model(void **state)
{
    (void)state;
    expect_weights(WEFT_QUANTISE_NONE, WEFT_F8_E4M3, WEFT_F8_E4M3, 128);
    expect_weights(WEFT_QUANTISE_BF16, WEFT_F8_E4M3, WEFT_BF16, 0);
    expect_weights(WEFT_QUANTISE_Q4_0, WEFT_F8_E4M3, WEFT_Q4_0, 0);
    expect_weights(WEFT_QUANTISE_NONE, WEFT_F32, WEFT_BF16, 0);
    expect_weights(WEFT_QUANTISE_NONE, WEFT_BF16, WEFT_BF16, 0);
    expect_weights(WEFT_QUANTISE_Q8_0, WEFT_F16, WEFT_Q8_0, 0);
}

/* Every kind can be measured, and passes matrices that no cache holds. */
static void test_every_kind_is_measured(void **state)
{
    static const struct weft_speed_weights kinds[] = {
        {WEFT_BF16, 0}, {WEFT_Q8_0, 0}, {WEFT_Q4_0, 0}, {WEFT_F8_E4M3, 128}, {WEFT_F8_E4M3, 0}};
    const struct weft_device_options options = {.kind = "cpu", .thread_count = 1, .wait = WEFT_WAIT_YIELD};
    struct weft_device *device = NULL;

    (void)state;
    assert_int_equal(weft_device_open(&options, &device), WEFT_OK);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        struct weft_speed_probe *probe = NULL;
        double seconds = 0;

        assert_int_equal(weft_speed_probe_open(device, &kinds[i], &probe), WEFT_OK);
        assert_true(weft_speed_probe_size(probe) >= 190e6);
        assert_int_equal(weft_speed_probe_run(probe, &seconds), WEFT_OK);
        assert_true(seconds > 0);
        weft_speed_probe_close(&probe);
    }
    weft_device_close(&device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights_of_a_model),
        cmocka_unit_test(test_every_kind_is_measured),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
