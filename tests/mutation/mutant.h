// The number of the mutant that is tried.
#pragma once

extern int fastreg_mutant;
