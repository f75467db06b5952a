// Package agent is the guest's first process: it turns a kernel that has just
// handed over into one that runs a single command, and reports the command's
// end over guest/link.
//
// Its way through the boot is short on purpose, as all of it is time before
// the user's command: mount what programs expect, open the link, load the
// modules of the job in the given order, wait for the devices the job names,
// run. It knows Linux and the link; it knows nothing of the monitor that
// watches over the other end.
package agent
