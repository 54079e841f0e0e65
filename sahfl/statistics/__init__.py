"""From the cases of each hospital to sums that may leave it, and from the sums of all hospitals to estimates.

Read the modules in this order: ``metrics`` (what is measured per case, with histogram bins), ``cases`` (one case and
its groups), ``agreement`` (sums of volumes), ``groups`` (sums of one group), ``sums`` (everything a site reports),
``disclosure`` (what a site withholds), ``variances`` (over patients and trainings) and ``estimates`` (means, intervals
and tests). The modules that run at a hospital use only numpy, so that a hospital can read them.
"""
