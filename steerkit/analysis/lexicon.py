"""Frequent words of languages that are written in Latin letters; no list is a dictionary.

Written for this project: function words, and (English) the words of worked arithmetic. A token that is in none is
``latin``: names, pieces of words, code. English comes first: a word that two languages share counts to it.
"""

from __future__ import annotations

LEXICON: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "english": """
            a about above across add added adding after again all almost along already also although always
            among an and another answer any anything are as ask at away back be became because become been
            before began begin being below between big both box boxed but buy buys by calculate call came can
            case change check clear come compute consider could count cube day decide define denote determine
            did different digit distance divide divided divisor do does done double doubles down each easy
            either else end enough equal equals equation even every example expand explain expression fact
            factor false far few final finally find finds first five following follows for formula found four
            fraction friend from function further get give given gives go goes good got great greater had half
            hard has have he hence her here high him his how however i idea if implies important in including
            increase inside instead integer into is it its just keep kind know known large larger last later
            least left less let like likely line list little long look lose loses made main make makes many
            maximum may maybe me mean means method might minimum minus more most move much multiple multiplied
            multiply must my name need never new next nine no none nor not note nothing now number numbers
            obtain of off often old on once one only open or order other our out over own pair part per perhaps
            person place please plus point possible power previous prime probability problem product prove put
            question quick quickly quite rather ratio reach real reason recall remainder remaining required
            result right root said same say says second see seems sell sells sequence set seven several she
            should show side similarly simple simplify simplifying since six size small so solution solve some
            something square start statement step steps still stop story substitute subtract such sum suppose
            take tell ten term than that the their them then there therefore these they thing think this those
            though three through thus time times to together too total toward triangle true try turn two under
            understand unknown until up upon us use used using value values variable very want was way we well
            went were what when where whether which while who whole whose why will with within without word
            words work works would write wrong yes yet you your zero
        """,
        "german": """
            aber als also am antwort auch auf aus bei beide bin bis da damit dann das dass dein dem den denn der
            des dich die dies diese dieser dir doch du durch ein eine einem einen einer eines er erste es euch
            euer für ganz gegen haben hat hatte hier ich ihm ihn ihr im immer ist ja jede jetzt kann kein keine
            können lösung man mehr mein mit muss nach nicht nichts noch nun nur ob oder ohne rechnen schon
            schritt sehr sein sich sie sind so über um und uns unter viel vom von vor war warum was weil wenn
            wer werden wie wieder wir wird wo zahl zu zuerst zum zur zwei zwischen
        """,
        "french": """
            alors après au aussi autre aux avant avec avoir car ce ceci cela ces cette ceux chaque comme comment
            dans de des deux donc dont du elle elles en encore entre est et étape être eux fait il ils je jusque
            la le les leur leurs lorsque lui mais même mes moins mon nombre nos notre nous ont ou où par parce
            pas peu peut plus pour pourquoi premier quand que quel quelle qui réponse rien sa sans se selon ses
            si solution son sont sous sur ta tous tout très trouver trois tu un une vers voici vos votre vous
        """,
        "spanish": """
            ahora al algo antes aquí así aunque cada como cómo con cual cuando cuántos de del desde donde dos el
            él ella ellos en encontrar entonces entre era es esa ese eso esta está este esto fue ha hacia hasta
            hay la las le les lo los más me menos mi mucho muy nada ni no nos nosotros número nunca otra otro
            para paso pero poco por porque primero puede que qué quien respuesta se según ser si sí sin sobre
            solución son su sus también tan tiene todo tres tu un una uno usted ya yo
        """,
        "italian": """
            abbiamo al alla allora anche ancora avere bene che chi ci come con cosa così da dal dalla degli dei
            del della delle di dopo dove due ecco era essere fa gli ha hanno il in invece io la le lei lo loro
            lui ma me meno mi molto nei nel nella noi non nostro numero ogni ora per perché più poi prima quale
            quando quanto quello questa questo qui risposta se sei sempre si sia soluzione sono sta su sua suo
            trovare tutti tutto un una uno voi
        """,
        "portuguese": """
            agora ainda antes ao aos aqui as assim até cada com como da das de depois do dois dos ela ele eles
            em encontrar então entre era essa esse esta está este eu foi há isso isto já lhe mais mas menos meu
            muito na não nas nem no nos nós número onde os ou outra outro para passo pela pelo pode por porque
            primeiro quando quanto que quem resposta se sem ser seu solução sua são também tem todo três tu um
            uma você
        """,
    }.items()
}
