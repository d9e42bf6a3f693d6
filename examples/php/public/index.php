<?php

declare(strict_types=1);

require __DIR__ . '/../src/moon.php';

printf("%d %% of the moon is lit.\n", round(100 * lit(time())));
