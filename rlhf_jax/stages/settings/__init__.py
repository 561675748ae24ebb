"""Settings of the stages, which import no stage."""
