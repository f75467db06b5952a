// Package userland is the small set of commands that a guest made by hvpost
// has when its image holds nothing else: a shell and what shell scripts call.
// All of them live in the one hvpost binary and are told apart by the name
// they are started under.
//
// They follow POSIX, and GNU where scripts have come to rely on it, in the
// options that scripts use; an option that is not known is an error and never
// ignored. The package knows Linux and the agent's way to end the machine,
// and nothing of VMs.
package userland
