/* Sizes in binary units: one decimal below 100, none from there and for bytes. */
#include "base/size_text.h"

#include <stdio.h>

const char *weft_size_text(uint64_t size, char text[WEFT_SIZE_TEXT_SIZE])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)size;
    size_t unit = 0;

    while (value >= 1024.0 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        value /= 1024.0;
        unit++;
    }
    snprintf(text, WEFT_SIZE_TEXT_SIZE, value >= 100.0 || unit == 0 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return text;
}
