/* weft_fake has no ranks to look at: its doctor refuses. */
#include <stdio.h>

#include "command.h"

int weft_command_doctor(struct weft_settings *settings)
{
    (void)settings;
    fputs("weft doctor: not with the fake engine\n", stderr);
    return WEFT_EXIT_USAGE;
}

void weft_command_doctor_start(const struct weft_setup *setup)
{
    (void)setup;
}
