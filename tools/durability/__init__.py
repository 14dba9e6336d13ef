"""The harness that proves, by kills and cuts, that an acknowledged postback is never lost."""
