// Package session runs one command in one guest: it resolves a kernel, builds
// the initial RAM file system, boots a machine, connects the command's
// streams, watches the clock, and reports what became of it.
//
// It stands above vmm and knows Linux: the kernel command line, the agent,
// what a panic looks like. It knows nothing of flags or exit codes; the
// command line tool maps a Result to those.
//
//	Prepare(Options) -> Plan -> Run(ctx) -> Result
package session
