//go:build race

package userland

// Each command of a script is a process of its own, and one built with the
// race detector takes a tenth of a second to start. Under the detector every
// fourth script runs: what races could be there are in the shell, not in the
// number of options.
const every = 4
