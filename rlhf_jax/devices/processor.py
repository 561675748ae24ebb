"""The kind of this machine's processor: XLA compiles for the instructions that it has."""

import platform


def kind() -> str:
    """The processor's name, family, model and stepping.

    Makers' names are too coarse: "AMD EPYC" is several generations.
    """
    try:
        with open("/proc/cpuinfo") as file:
            first = file.read().partition("\n\n")[0].splitlines()
    except OSError:
        first = []
    fields = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first)
    }
    name = fields.get("model name") or platform.processor() or platform.machine()
    detail = [
        f"{key} {fields[key]}" for key in ("cpu family", "model", "stepping") if key in fields
    ]
    return ", ".join([name, *detail])
