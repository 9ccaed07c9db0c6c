#pragma once

#pragma GCC visibility push(default)
extern "C" {

double sum_in_order(const double* terms, int count);
void divide_all(double* numbers, int count, double divisor);
bool is_nan(double x);
double add_zero(double x);
double add_product(double x, double y, double z);
double half(double x);
}
#pragma GCC visibility pop
