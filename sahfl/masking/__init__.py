"""Secure aggregation: sites mask what they send, and the masks cancel in the sum. numpy and cryptography only.

Read the modules in this order: ``context`` (which round), ``ring`` (numbers that can be masked), ``sharing`` (a secret
in shares), ``keys`` and ``masks`` (from keys to masks), ``graph`` (who shares with whom), ``site_list`` (who takes
part), ``party`` (a site's side of a round, with ``own_secrets`` and ``notes``) and ``collector`` (the server's side).
Nothing here sends a message, reads a file or draws a random number; the caller does.

The protocol is that of Bonawitz et al. 2017 (10.1145/3133956.3133982, figure 4, with its consistency check), for many
sites on the graph of Bell et al. 2020 (eprint 2020/704). A site adds two kinds of mask to its vector: its self mask,
and one with each neighbour, which the neighbour subtracts. Both seeds are shared among the neighbours (Shamir), so that
a site may drop out at any step. Of every other site, a site reveals one kind of share in its whole life.

A round has five steps; n sites are in the list, t is the threshold:

1. ``advertise``: each site signs two fresh public keys with the key of its certificate. These n sites are the list.
2. ``share``: each site sends each neighbour a share of its two seeds, encrypted. Those who did are the *sharers*.
3. ``mask``: each sharer sends its masked vector. Those who did are the *survivors*.
4. ``confirm``: each survivor signs who the sharers and the survivors are.
5. ``reveal``: a site that has seen the signatures of t survivors under the same names reveals its shares: of the self
   masks of survivors, of the mask keys of those who dropped out.

What is protected. A server that does anything it likes, together with any c sites, learns of the others the sum of the
vectors of all survivors, as long as 2t > n + c, so c = 2t - n - 1. The sum is of t survivors at least, and of three.

Beyond 100 sites a site has k neighbours only, and q of its holders must stay; ``graph`` says what holds then.

Why 2t > n + c. To open one vector, the server needs t shares of both seeds of its site, 2t together. The n - c honest
sites give one kind each, whatever lists they are shown, the c others both: n + c shares. The same count makes step 4
sound: two different lists of survivors would need t signatures each, and an honest site signs once.

Why step 4 is needed all the same. The count above keeps a single vector closed; it does not keep the sum large. With
five sites and t = 3, a server that shows each site another list of three or more survivors can collect the mask keys of
three sites and the self masks of the two others, and so the sum of two, though each site counted three. The test of
this name in ``tests/masking/test_lies.py`` has the lists.

What is not protected:

- *Poisoning.* A site may send any vector. Neither the clip nor the bound of ``ring`` can be checked on a masked vector;
  honest programs keep them, and a total beyond what they allow is refused (``FixedPoint.decode``), nothing else is.
- *What the sum tells.* Membership in the training data can be guessed from a sum as from any network. c colluding
  sites subtract their own vectors from it; of t survivors, t - c remain. Two sums over nearly the same vectors have a
  difference: never mask the same vector in two rounds. Over many rounds in which one site is missing now and then, the
  differences add up to its mean (So et al. 2021, arXiv:2106.03328).
- *Invented sites.* Whoever holds the key of the consortium's authority can make certificates, and so sites. If they
  count as honest where c was counted, the server sees through everything. Sites must know each other's keys otherwise.
- *Availability.* A site that seals wrong shares, or a server, can make a round fail. A failed round stays failed.
- *A site's folder that is put back.* Notes of an earlier step allow another list; see ``party``.
- *Who took part*, when, how long the vectors are, and the weights, which are public.
"""
