<?php

declare(strict_types=1);

/** Returns how much of the moon is lit, from 0 to 1, at a Unix time. */
function lit(int $time): float
{
    $newMoon = 947182440; // 2000-01-06 18:14 UTC
    $month = 29.530588853 * 86400;
    $phase = fmod($time - $newMoon, $month) / $month;
    return (1 - cos(2 * M_PI * $phase)) / 2;
}
