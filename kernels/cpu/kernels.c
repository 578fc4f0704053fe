/* Which level this machine has, and the table filled up to it. */
#include "cpu/kernels.h"

#include <string.h>

#include "weft/log.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static const char *const level_names[WEFT_CPU_LEVEL_COUNT] = {"ref", "avx2", "avx512", "avx512vnni"};

const char *weft_cpu_level_name(enum weft_cpu_level level)
{
    return level_names[level];
}

#if defined(__x86_64__)

/* CPUID and XGETBV bits, Intel SDM vol. 2A (CPUID) and vol. 1 section 13.3; the operating system must save the state.
 */
enum {
    LEAF1_ECX_FMA = 1 << 12,
    LEAF1_ECX_OSXSAVE = 1 << 27,
    LEAF1_ECX_F16C = 1 << 29,
    LEAF7_EBX_AVX2 = 1 << 5,
    LEAF7_EBX_AVX512_F_DQ = (1 << 16) | (1 << 17),
    LEAF7_EBX_AVX512_BW = 1 << 30,
    LEAF7_ECX_AVX512_VNNI = 1 << 11,
    XCR0_YMM = 0x6,
    XCR0_ZMM = 0xe6,
};
#define LEAF7_EBX_AVX512_VL (1U << 31)

static uint32_t read_xcr0(void)
{
    uint32_t low;
    uint32_t high;

    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has_all(uint32_t value, uint32_t bits)
{
    return (value & bits) == bits;
}

enum weft_cpu_level weft_cpu_level_detect(const char **reason_out)
{
    const uint32_t avx512_bits = LEAF7_EBX_AVX512_F_DQ | LEAF7_EBX_AVX512_BW | LEAF7_EBX_AVX512_VL;
    uint32_t eax = 0;
    uint32_t ebx = 0;
    uint32_t ecx = 0;
    uint32_t edx = 0;
    uint32_t leaf7_ebx = 0;
    uint32_t leaf7_ecx = 0;
    uint32_t xcr0 = 0;
    const char *reason = "";
    enum weft_cpu_level level = WEFT_CPU_REF;

    if (__get_cpuid_count(7, 0, &eax, &leaf7_ebx, &leaf7_ecx, &edx) == 0) {
        leaf7_ebx = 0;
        leaf7_ecx = 0;
    }
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && has_all(ecx, LEAF1_ECX_OSXSAVE)) {
        xcr0 = read_xcr0();
    }
    if (!has_all(ecx, LEAF1_ECX_FMA | LEAF1_ECX_F16C) || !has_all(leaf7_ebx, LEAF7_EBX_AVX2)) {
        reason = "the CPU lacks AVX2, FMA or F16C";
    } else if (!has_all(xcr0, XCR0_YMM)) {
        reason = "the operating system does not save AVX state";
    } else if (!has_all(leaf7_ebx, avx512_bits)) {
        level = WEFT_CPU_AVX2;
        reason = "the CPU lacks AVX-512 F, DQ, BW or VL";
    } else if (!has_all(xcr0, XCR0_ZMM)) {
        level = WEFT_CPU_AVX2;
        reason = "the operating system does not save AVX-512 state";
    } else if (!has_all(leaf7_ecx, LEAF7_ECX_AVX512_VNNI)) {
        level = WEFT_CPU_AVX512;
        reason = "the CPU lacks AVX-512 VNNI";
    } else {
        level = WEFT_CPU_AVX512VNNI;
    }
    if (reason_out != NULL) {
        *reason_out = reason;
    }
    return level;
}

void weft_cpu_kernels_init(struct weft_cpu_kernels *kernels, enum weft_cpu_level level)
{
    weft_cpu_kernels_fill_ref(kernels);
    if (level >= WEFT_CPU_AVX2) {
        weft_cpu_kernels_fill_avx2(kernels);
    }
    if (level >= WEFT_CPU_AVX512) {
        weft_cpu_kernels_fill_avx512(kernels);
    }
    if (level >= WEFT_CPU_AVX512VNNI) {
        weft_cpu_kernels_fill_avx512vnni(kernels);
    }
}

#else

enum weft_cpu_level weft_cpu_level_detect(const char **reason_out)
{
    if (reason_out != NULL) {
        *reason_out = "this build has vector kernels for x86-64 only";
    }
    return WEFT_CPU_REF;
}

void weft_cpu_kernels_init(struct weft_cpu_kernels *kernels, enum weft_cpu_level level)
{
    (void)level;
    weft_cpu_kernels_fill_ref(kernels);
}

#endif

enum weft_status weft_cpu_level_parse(const char *name, enum weft_cpu_level *level_out)
{
    const char *reason;
    enum weft_cpu_level best = weft_cpu_level_detect(&reason);

    if (name == NULL || strcmp(name, "auto") == 0) {
        *level_out = best;
        return WEFT_OK;
    }
    for (int level = 0; level < WEFT_CPU_LEVEL_COUNT; level++) {
        if (strcmp(name, level_names[level]) != 0) {
            continue;
        }
        if (level > (int)best) {
            weft_log(WEFT_LOG_ERROR, "kernels/cpu", "level %s is not available: %s; best here is %s", name, reason,
                     level_names[best]);
            return WEFT_ERR_UNSUPPORTED;
        }
        *level_out = (enum weft_cpu_level)level;
        return WEFT_OK;
    }
    weft_log(WEFT_LOG_ERROR, "kernels/cpu", "unknown CPU level \"%s\": expected ref, avx2, avx512 or avx512vnni", name);
    return WEFT_ERR_ARGUMENT;
}
